"""Messages to bytes and back: framing, msgpack codec, tensor payloads, size limits."""
