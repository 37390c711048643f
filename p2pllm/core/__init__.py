"""The protocol as pure state machines: no clock, socket, thread or tensor."""
