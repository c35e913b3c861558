"""The only room with sockets to providers: connections, framing, signing, and the relay that tries and streams."""
