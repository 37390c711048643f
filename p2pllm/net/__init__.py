"""Thin asyncio shells: TLS streams, datagrams, mDNS, and the driver that feeds the core."""
