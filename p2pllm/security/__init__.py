"""Swarm authority, certificates, invites, datagram keys, record signatures."""
