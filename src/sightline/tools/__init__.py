"""What a policy may call between its turns: the crop tool, the syntax of its calls, and the rule of a conversation."""
