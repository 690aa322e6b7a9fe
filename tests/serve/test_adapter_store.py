"""Names, counts and places of adapters over any order of events."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmlab.errors import ConfigError, ModelError, RequestError
from llmlab.finetune import LoraConfig, add_lora, save_adapter
from llmlab.model.adapter_folder import base_fingerprint
from llmlab.serve.adapters import AdapterStore
from tests.tiny import tiny_model

MAX_LORAS = 2
NAMES = st.sampled_from(["a", "b", "c"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model, config = tiny_model(num_hidden_layers=1), LoraConfig(rank=2)
    add_lora(model, config)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, config, folder, base_model="tiny")
    return folder


class Events(RuleBasedStateMachine):
    """Loads, unloads and requests, beside what is to be true after each."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        model = tiny_model(num_hidden_layers=1)
        self.store = AdapterStore(
            model.config,
            max_loras=MAX_LORAS,
            max_rank=2,
            memory_mb=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
            fingerprint=base_fingerprint(model),
        )
        self.users: dict[str, int] = {}  # by key, of every adapter that has one or takes requests
        self.key_of: dict[str, str] = {}  # by name, of those that take requests
        self.seen: set[str] = set()

    @rule(name=NAMES, is_broken=st.booleans())
    def load(self, name: str, is_broken: bool) -> None:
        if name in self.key_of or len(self.users) == MAX_LORAS:
            with pytest.raises(ConfigError, match=r"is loaded already|adapters are loaded"):
                self.store.load(name, self.folder)
        elif is_broken:
            with pytest.raises(ModelError):
                self.store.load(name, self.folder / "nowhere")
        else:
            self.store.load(name, self.folder)
            key = self.store.acquire(name)
            self.store.release(key)
            assert key not in self.seen, "a key never comes back"
            self.seen.add(key)
            self.key_of[name] = key
            self.users[key] = 0

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        if name not in self.key_of:
            with pytest.raises(RequestError):
                self.store.unload(name)
            return
        self.store.unload(name)
        key = self.key_of.pop(name)
        if not self.users[key]:
            del self.users[key]

    @rule(name=NAMES)
    def acquire(self, name: str) -> None:
        if name not in self.key_of:
            with pytest.raises(RequestError):
                self.store.acquire(name)
            return
        key = self.store.acquire(name)
        assert key == self.key_of[name]
        self.users[key] += 1

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        taken = [key for key, count in self.users.items() if count]
        if not taken:
            return
        key = data.draw(st.sampled_from(taken))
        self.store.release(key)
        self.users[key] -= 1
        if not self.users[key] and key not in self.key_of.values():
            del self.users[key]

    @invariant()
    def places_belong_to_one_adapter_each(self) -> None:
        assert self.store.names.keys() == self.key_of.keys()
        slots = [self.store.slot_of(key) for key in self.users]
        assert len(set(slots)) == len(slots) <= MAX_LORAS
        assert set(slots) <= set(range(MAX_LORAS))
        assert self.store.slot_of(None) == -1


def test_any_order_of_events(folder):
    class Here(Events):
        pass

    Here.folder = folder
    Here.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
    Here.TestCase().runTest()
