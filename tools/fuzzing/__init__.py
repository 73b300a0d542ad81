"""What whoever talks to the service might send, by damaging what is good. Its command line is `tools/fuzz`."""
