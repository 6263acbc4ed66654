"""Wire, manifests, safetensors, durable names and the timeline rule: round trips, and hostile input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from holdfast_core import durable, local, manifest, safetensors, wire
from holdfast_core.durable import Shard, StepManifest
from holdfast_core.manifest import CorruptShard, Entry, SlotManifest
from holdfast_core.messages import AgentState, Command, Member, RankState, Source, StoreState
from holdfast_core.timeline import Copy, Resume, extend, is_valid, merge
from hypothesis import given
from hypothesis import strategies as st

copies = st.builds(Copy, st.integers(-1, 6), st.integers(1, 6))
resumes = st.builds(Resume, st.integers(1, 6), st.integers(-1, 6))


# --- wire


@pytest.mark.parametrize(
    "message",
    [
        AgentState("uid", "pod", 0, 3, ranks=(RankState(1, loss=0.5, log_tail=("a",)),), sealed={1: (Copy(1, 2),)},
                   committed=Copy(1, 2), stores=(StoreState("s3", committed=Copy(0, 1)),), error_source=Source("s3", 1, 1)),
        Command("prepare", 2, (Member(0, "p", "10.0.0.1", 7470, 0, 1),), Source("memory", 4, 1), (Resume(2, 4),), 29502),
        local.Hello(1, 2, (local.Process(0, 7, signal=9, log_tail=("x",)),)),
    ],
)  # fmt: skip
def test_messages_survive_the_wire(message):
    assert wire.loads(type(message), wire.dumps(message)) == message


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (b'{"kind": 1, "attempt": 1}', "Command.kind"),
        (b'{"kind": "x", "attempt": true}', "Command.attempt"),
        (b'{"kind": "x", "attempt": 1, "members": [{"index": "0"}]}', r"members\[0\].index"),
        (b'{"kind": "x"}', "attempt"),
        (b'{"kind": "x", "attempt": 1, "source": {"level": 3, "step": 1, "attempt": 1}}', "source.level"),
    ],
)
def test_a_bad_message_is_refused_by_the_name_of_its_field(raw, names):
    with pytest.raises(wire.WireError, match=names):
        wire.loads(Command, raw)


def test_unknown_fields_are_ignored():
    assert wire.loads(Copy, b'{"step": 1, "attempt": 2, "later": []}') == Copy(1, 2)


def test_local_lines_carry_their_kind_and_id():
    line = local.pack(local.Attach(1, 2), 5)
    assert line.endswith(b"\n")
    assert local.unpack(line) == (local.Attach(1, 2), 5)
    for bad in (b"x", b'{"kind": "Nope"}', b'{"body": {}}', b"[1]", b'{"kind": "Attach", "body": {"rank": []}}'):
        with pytest.raises(wire.WireError):
            local.unpack(bad)


# --- slot manifest and safetensors


def sample() -> tuple[SlotManifest, bytearray]:
    entries = manifest.lay_out(
        [Entry("w", "float32", (3,), 0, 12), Entry("c", "complex128", (1,), 0, 16), Entry("empty", "int64", (0, 4), 0, 0)]
    )
    made = SlotManifest(7, 2, 1, 4, entries, {"model": ["w", None]})
    data = bytearray(made.data_bytes)
    for entry in entries:
        data[entry.offset : entry.offset + entry.nbytes] = bytes(range(1, entry.nbytes + 1))
    return replace(made, entries=tuple(manifest.with_checksums(e, memoryview(data)) for e in entries)), data


def test_entries_are_aligned_and_verified():
    made, data = sample()
    assert [e.offset % 64 for e in made.entries] == [0, 0, 0]
    manifest.verify(made, memoryview(data))
    assert manifest.load(manifest.dump(made)) == made


@given(st.data())
def test_any_flipped_bit_of_a_tensor_is_found(data):
    made, raw = sample()
    entry = data.draw(st.sampled_from([e for e in made.entries if e.nbytes]))
    position = entry.offset + data.draw(st.integers(0, entry.nbytes - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptShard, match=entry.key):
        manifest.verify(made, memoryview(raw))


def test_a_shard_that_is_shorter_than_its_manifest_is_refused():
    made, data = sample()
    with pytest.raises(CorruptShard, match="outside"):
        manifest.verify(made, memoryview(data)[:20])


def test_a_shard_file_is_safetensors_without_holes_and_gives_the_slot_back():
    made, data = sample()
    blob = b"".join(bytes(p) for p in safetensors.parts(made, memoryview(data)))
    length = safetensors.header_length(blob[:8])
    table = json.loads(blob[8 : 8 + length])
    assert table["w"] == {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    assert table["c"]["dtype"] == "U8"  # the format has no complex128
    assert len(blob) == 8 + length + 28
    parsed, spans = safetensors.parse_header(blob[8 : 8 + length])
    assert parsed == made
    for entry, start, end in spans:
        assert blob[8 + length + start : 8 + length + end] == bytes(manifest.entry_data(memoryview(data), entry))


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 8, b'{"__metadata__": {"holdfast": "{}"}}', b'{"__metadata__": 3}'])
def test_a_bad_safetensors_header_is_refused(raw):
    with pytest.raises(CorruptShard):
        safetensors.parse_header(raw)


def test_an_impossible_header_length_is_refused():
    for first in (b"", b"\xff" * 8, bytes(8)):
        with pytest.raises(CorruptShard):
            safetensors.header_length(first)


# --- durable


def test_names_of_steps_and_attempts_are_parsed_back():
    assert durable.parse_step_dir(durable.step_dir(Copy(1200, 3))) == Copy(1200, 3)
    assert durable.step_dir(Copy(1200, 3)) == "step-00001200.a0003"
    assert durable.attempt_file(4) == "attempts/00000004.json"
    for foreign in ("step-1.a1", "lost+found", ".step-00001200.a0003.tmp", "step-00001200.a0003/.."):
        assert durable.parse_step_dir(foreign) is None


def test_a_manifest_that_cannot_serve_says_why():
    shards = tuple(Shard(r, durable.shard_file(r), 10, 1) for r in range(2))
    good = StepManifest("u", 5, 1, 2, "2026-01-01T00:00:00Z", shards)
    assert durable.problem(good, Copy(5, 1), 2) is None
    assert "ranks" in durable.problem(good, Copy(5, 1), 3)
    assert "folder" in durable.problem(good, Copy(6, 1), 2)
    assert "every rank" in durable.problem(replace(good, shards=shards[:1] * 2), Copy(5, 1), 2)
    escape = replace(shards[0], file="../../etc/passwd")
    assert "outside" in durable.problem(replace(good, shards=(escape, shards[1])), Copy(5, 1), 2)


def test_retention_keeps_the_newest_valid_steps_and_drops_void_ones():
    held = [Copy(10, 1), Copy(20, 1), Copy(30, 1), Copy(25, 2)]
    history = (Resume(2, 20),)  # attempt 2 resumed from 20: attempt 1's step 30 is void
    assert durable.to_delete(held, history, keep=2) == (Copy(10, 1), Copy(30, 1))
    assert durable.to_delete(held, history, keep=0) == (Copy(30, 1),)
    assert durable.to_delete([], history, keep=1) == ()


# --- timeline


def test_an_abandoned_step_is_void_whenever_it_arrives():
    assert is_valid(Copy(30, 1), ())
    assert not is_valid(Copy(30, 1), (Resume(2, 20),))
    assert is_valid(Copy(20, 1), (Resume(2, 20),))
    assert is_valid(Copy(30, 2), (Resume(2, 20),))


@given(copies, st.lists(resumes, max_size=6, unique_by=lambda r: r.attempt))
def test_dropping_redundant_records_changes_no_verdict(copy, records):
    assert is_valid(copy, records) == is_valid(copy, merge(records))


@given(st.lists(resumes, max_size=6, unique_by=lambda r: r.attempt), st.integers(0, 6))
def test_of_each_step_at_most_one_attempt_is_valid(records, step):
    """Only attempts that resumed below a step write it; of those, one is valid at most."""
    wrote = [Copy(step, r.attempt) for r in records if r.step < step]
    assert sum(is_valid(c, records) for c in wrote) <= 1


def test_history_stays_short():
    history = ()
    for attempt in range(1, 50):
        history = extend(history, Resume(attempt, attempt % 5))
    assert len(history) <= 5
