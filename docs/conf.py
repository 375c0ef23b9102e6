from importlib.metadata import version as installed_version

project = "jsoftmax"
author = "The jsoftmax authors"
copyright = "The jsoftmax authors"
version = release = installed_version("jsoftmax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]
# Names in single backticks are code; a reference to something that no page documents is an error.
default_role = "code"
nitpicky = True

html_theme = "furo"
html_title = "jsoftmax"

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "force"
nb_execution_show_tb = True

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
# As a section of its own, Returns is prose: a colon in it does not end the name of a type.
napoleon_custom_sections = ["Gradient", "Returns"]
napoleon_use_ivar = True  # fields of named tuples are documented once
