"""sightline: post-train multimodal LLMs to reason from what they see."""

__version__ = "0.1.0"
