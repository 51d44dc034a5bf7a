"""What happens when something on the page is pressed."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

import gradio as gr

from gpt2core.errors import UserError
from gpt2ops.app.page.fields import as_typed, checked_setting, default_of, field_specs, in_labels, read_setting, uses
from gpt2ops.app.page.history import Record, as_json_lines, records_of
from gpt2ops.app.page.markup import alert_html, command_html, history_html, outputs_html, status_html
from gpt2ops.app.serving.service import GenerationProgress, GenerationRequest, GenerationService
from gpt2ops.params.decoding import STRATEGIES, Decoding

RANDOM_SEEDS = 2**32  # as `gpt2 generate` draws one


class Handlers:
    """Called by Gradio with the values of components. A visitor is known by the session of the tab."""

    def __init__(self, service: GenerationService, with_commands: bool) -> None:
        self._service, self._with_commands = service, with_commands
        self._stops: defaultdict[str, set[Event]] = defaultdict(set)

    async def generate(
        self,
        request: gr.Request,
        prompt: str,
        model: str | None,
        second: str | None,
        decoding: str,
        records: list[Record],
        *typed: Any,
    ) -> AsyncIterator[list[Any]]:
        """Yields alert, status, output, command, both buttons, records and history."""
        stop, stops = Event(), self._stops[str(request.session_hash)]
        stops.add(stop)
        keep = gr.skip()
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        busy = [gr.update(interactive=False), gr.update(interactive=True)]
        yield ["", status_html("…"), keep, keep, *busy, keep, keep]
        try:
            wanted = self._request(prompt, model, second, decoding, dict(zip(field_specs(), typed, strict=True)))
            async for progress in self._service.generate(wanted, stop):
                shown = outputs_html(wanted, progress) if progress.outputs else keep
                yield ["", status_html(progress.status), shown, keep, keep, keep, keep, keep]
            new = self._records(wanted, progress)
            kept = [*records, *new][-self._service.limits.history :]
            history = history_html(kept, self._with_commands)
            yield ["", "", keep, command_html(new), *idle, kept, history]
        except UserError as error:
            yield [alert_html(str(in_labels(error))), "", keep, keep, *idle, keep, keep]
        finally:
            stop.set()
            stops.discard(stop)

    async def generate_text(
        self,
        prompt: str,
        model: str = "",
        decoding: str = "sample",
        settings: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> list[dict[str, Any]]:
        """Write after a prompt; the texts with their settings, as the downloaded history has them.

        `model` is a name of the page's list (default: its first), `settings` has keys of params.yaml's sample.settings.
        """
        try:
            setting = checked_setting(
                {**(settings or {}), "decoding": decoding, **({} if seed is None else {"seed": seed})}
            )
            name = model or next((name for _, name in self._service.cache.source.choices()), "")
            wanted = GenerationRequest(prompt, (name,), setting, _seed(setting.seed))
            async for progress in self._service.generate(wanted, Event()):
                last = progress
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return self._records(wanted, last)

    def stop(self, request: gr.Request) -> None:
        """End what this tab has wanted for; also when the tab is closed."""
        for stop in list(self._stops.pop(str(request.session_hash), ())):
            stop.set()

    def open_page(self, request: gr.Request) -> list[Any]:
        """The models there are now, and a prompt from the address (`?prompt=...`)."""
        choices = self._service.cache.source.choices()
        first = choices[0][1] if choices else None
        missing = (
            "" if choices else "There is no model yet: train one with gpt2 finetune, or in a project with dvc repro."
        )
        return [
            gr.update(choices=choices, value=first),
            gr.update(choices=[("none", ""), *choices], value=""),
            str(request.query_params.get("prompt", "")),
            alert_html(missing),
        ]

    @staticmethod
    def choose_strategy(decoding: Decoding) -> list[Any]:
        """Show the fields of a strategy, with its own defaults; what all strategies share stays as it was typed."""
        updates = []
        for key in field_specs():
            update: dict[str, Any] = {"visible": uses(decoding, key)}
            if any(key in strategy.keys for strategy in STRATEGIES.values()) and key != "num_sequences":
                update["value"] = as_typed(default_of(decoding, key))
            updates.append(gr.update(**update))
        return updates

    @staticmethod
    def history_lines(records: list[Record]) -> str:
        return as_json_lines(records)

    def clear_history(self) -> list[Any]:
        return [[], history_html([], self._with_commands)]

    def _request(
        self, prompt: str, model: str | None, second: str | None, decoding: str, typed: dict[str, Any]
    ) -> GenerationRequest:
        setting = read_setting(decoding, typed)
        models = tuple(name.strip() for name in (model, second) if name and name.strip())
        if not (model or "").strip():
            raise UserError("No model is chosen: choose one under Model, or type the folder of one.")
        return GenerationRequest(prompt or "", models, setting, _seed(setting.seed))

    def _records(self, wanted: GenerationRequest, progress: GenerationProgress) -> list[Record]:
        weights = self._service.cache.weights
        return [record for output in progress.outputs for record in records_of(wanted, output, weights)]


def _seed(seed: int | None) -> int:
    return random.SystemRandom().randrange(RANDOM_SEEDS) if seed is None else seed
