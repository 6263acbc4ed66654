"""What a worker can be told to do: one module a task, its verbs are the methods of `Task`."""
