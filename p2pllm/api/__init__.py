"""The HTTP face: OpenAI routes, health, metrics and the node's control routes."""
