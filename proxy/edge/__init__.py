"""HTTP in and out, nothing else. `protocol` guards the socket, `lane` carries a hot request, `chat` tells its story."""
