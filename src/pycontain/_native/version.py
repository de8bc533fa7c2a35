"""The version of the package; the extension carries it too, and the facade compares both."""

VERSION = "0.1.0"
