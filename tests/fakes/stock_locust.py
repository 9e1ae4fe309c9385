"""A locustfile as Locust's documentation has it: users who wait for their answer, 10 a second
each. Run by Locust; importing it would monkey-patch whoever does.
"""

from locust import FastHttpUser, constant_throughput, task


class Asker(FastHttpUser):
    wait_time = constant_throughput(10)

    @task
    def ask(self) -> None:
        body = {
            "model": "m@a",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": 5,
        }
        self.client.post("/v1/chat/completions", json=body)
