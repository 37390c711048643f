"""What the system speaks about: ids, layers, models, records, messages, errors. No I/O.

Everything here is a frozen dataclass or an enum. Nothing here decides anything; the decisions are
taken in `p2pllm.core`, and the bytes are made in `p2pllm.wire`.
"""
