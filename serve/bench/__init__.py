"""A load generator for servers with an OpenAI API: `llmlab bench serve`."""
