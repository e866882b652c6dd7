"""How Sphinx makes the documentation: `make docs`."""

import sys
from pathlib import Path

import conduit

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "conduit"
author = "the conduit developers"
release = version = conduit.__version__

extensions = [
    "autoapi.extension",
    "myst_parser",
    "command_line",
    "public_names",
    "stdlib_links",
]
exclude_patterns = ["_*"]
nitpicky = True
default_role = "py:obj"
smartquotes_action = "D"  # Dashes. A quote in a docstring is code as often as not.
suppress_warnings = ["autoapi.python_import_resolution"]

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"conduit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# It reads the stubs of the compiled modules and the source of the others, and imports neither. So
# signatures have their types, and the docstrings are those that an editor shows.
autoapi_dirs = ["../conduit"]
autoapi_file_patterns = ["*.pyi", "*.py"]
autoapi_generate_api_docs = False
autoapi_python_class_content = "class"
autoapi_member_order = "bysource"
autoapi_options = ["members", "imported-members"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
