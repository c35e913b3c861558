"""What clients speak. One module per dialect, sans-IO: bytes in, a validated request out; chunks in, bytes out."""
