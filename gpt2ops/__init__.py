"""What stages, flows, the command and the web page share."""
