// An HTTP server of Go's on the socket that was passed; SIGTERM ends it.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func listener() (net.Listener, error) {
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		return net.FileListener(os.NewFile(3, "socket"))
	}
	return net.Listen("tcp", "127.0.0.1:"+os.Args[1])
}

func main() {
	sock, err := listener()
	if err != nil {
		log.Fatal(err)
	}
	told, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	server := &http.Server{Handler: http.HandlerFunc(
		func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, os.Getpid()) })}
	go server.Serve(sock)
	<-told.Done()
	server.Shutdown(context.Background())
}
