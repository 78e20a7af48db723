"""What a job would take on accelerators that are not there, by their compilers' estimates."""
