"""llama.cpp's process, killed: its error comes when its end is known."""

from serve_app.domain.errors import EngineError
from serve_app.engines.llamacpp_app import LlamaCppApp
from serve_app.engines.llamacpp_process import Answer, ChildSettings, Question
from tests.fakes.asgi import Exchange


class Dying:
    """A process whose socket is closed, and whose end is told at the fifth look."""

    def __init__(self) -> None:
        self.n_looks = 0

    @property
    def alive(self) -> bool:
        self.n_looks += 1
        return self.n_looks < 5

    async def ask(self, question: Question) -> Answer:
        raise EngineError("gone")


async def test_the_front_sees_a_dead_engine_when_it_sees_the_error(tmp_path):
    child = Dying()
    socket = str(tmp_path / "nobody-listens.sock")
    settings = ChildSettings("model.gguf", socket, 1, ("m",), 64, 1, 8, 1)
    app = LlamaCppApp(("m",), child, settings)
    exchange = await Exchange(app, "POST", "/v1/chat/completions", {"model": "m"})()
    await app.close()
    assert exchange.status == 500
    assert not child.alive
