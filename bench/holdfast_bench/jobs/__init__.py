"""Training scripts that are killed: the GPT of examples/gpt, each under its own launcher. Every rank notes when it finished a
step, so that the benchmark sees it without asking anybody. They run in the measured systems' environments."""
