"""The configuration that Ray's HAProxy really runs with."""

from serve_app.serving.haproxy import with_head_timeout

RAYS = "global\n    maxconn 4096\ndefaults\n    mode http\n    timeout client 3600s\nfrontend f\n"


def test_it_runs_a_copy_with_a_time_for_heads(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(RAYS)
    given = ["-db", "-f", str(file), "-dR", "-sf", "12"]
    arguments = with_head_timeout(given)
    copy = tmp_path / "haproxy.quantile.cfg"
    assert arguments == ["-db", "-f", str(copy), "-dR", "-sf", "12"]
    expected = RAYS.replace("defaults\n", "defaults\n    timeout http-request 15s\n")
    assert copy.read_text() == expected
    assert file.read_text() == RAYS
    file.write_text(RAYS.replace("4096", "8192"))
    with_head_timeout(given)
    assert "8192" in copy.read_text(), "as Ray wrote it last"
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, copy.name]


def test_a_time_that_is_set_stays(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(RAYS.replace("mode http", "timeout http-request 5s"))
    assert with_head_timeout(["-f", str(file)]) == ["-f", str(file)]


def test_other_calls_pass_as_they_are():
    assert with_head_timeout(["-vv"]) == ["-vv"]
    assert with_head_timeout([]) == []
