from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.ids import (
    MODEL_ID_LENGTH_MAX,
    NodeId,
    is_model_id,
    is_node_id,
    is_session_id,
    short,
)


@pytest.mark.parametrize("text", ["builtin", "owner/model-1", "Qwen/Qwen2.5-0.5B", "a", "0_x/0._-"])
def test_names_of_models_with_and_without_owner_are_model_ids(text: str) -> None:
    assert is_model_id(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "x/..", "x/../y", "/x", "x/", "a/b/c", "~/x", ".hidden", "x/.y", "-x"],
)
def test_no_path_that_climbs_or_hides_is_a_model_id(text: str) -> None:
    assert not is_model_id(text)


@pytest.mark.parametrize("text", ["a b", "a\n", "a\0", "a\\b", "a:b", "modèle", "a%2e", "x/y\n"])
def test_characters_that_mean_something_elsewhere_are_not_in_a_model_id(text: str) -> None:
    assert not is_model_id(text)


def test_a_model_id_is_bounded() -> None:
    assert is_model_id("m" * MODEL_ID_LENGTH_MAX)
    assert not is_model_id("m" * (MODEL_ID_LENGTH_MAX + 1))


@settings(deadline=None)
@given(st.text(alphabet="a./-_~", max_size=12))
def test_a_model_id_never_leaves_the_folder_it_is_joined_to(text: str) -> None:
    if is_model_id(text):
        assert all(part not in ("", ".", "..") for part in text.split("/"))


@pytest.mark.parametrize("check", [is_node_id, is_session_id])
def test_ids_are_just_thirty_two_lowercase_hexadecimal_digits(check: object) -> None:
    assert callable(check)
    assert check("0123456789abcdef" * 2)
    wrong = ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", " " + "a" * 31]
    assert [text for text in wrong if check(text)] == []


def test_people_are_shown_the_first_eight_digits() -> None:
    assert short(NodeId("0123456789abcdef" * 2)) == "01234567"
