"""OpenVINO IR: read, run and written."""
