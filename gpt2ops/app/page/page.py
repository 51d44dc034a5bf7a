"""The page: what stands where. What happens when something is pressed: `handlers`."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from gpt2ops.app.page.fields import DEFAULT_NEW_TOKENS, FieldSpec, as_typed, default_of, field_specs, uses
from gpt2ops.app.page.handlers import Handlers
from gpt2ops.app.page.markup import SCALE, history_html
from gpt2ops.app.serving.service import GenerationService
from gpt2ops.params.decoding import DRAWS, STRATEGIES, Decoding

FIRST_STRATEGY: Decoding = "sample"
COLUMN = 140  # pixels: two fields beside each other


def build_page(service: GenerationService, examples: Sequence[str], *, with_commands: bool = True) -> gr.Blocks:
    """The page over `service`; `with_commands` shows the `gpt2 generate` line of each text."""
    handlers = Handlers(service, with_commands)
    with gr.Blocks(title="GPT-2", analytics_enabled=False, fill_width=True) as page:
        records = gr.State([])
        gr.HTML("<h1>GPT-2</h1>", elem_id="heading")
        with gr.Column(elem_id="layout"):
            with gr.Column(elem_id="ask"):
                prompt = gr.Textbox(
                    label="Prompt (Ctrl+Enter generates)",
                    lines=4,
                    max_lines=12,
                    elem_id="prompt",
                    placeholder="How the text begins",
                )
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=COLUMN)
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=COLUMN)
                gr.Examples([[example] for example in examples], [prompt], label="Examples")
            with gr.Column(elem_id="answer"):
                alert = gr.HTML(elem_id="alert")
                status = gr.HTML(elem_id="status")
                output = gr.HTML(elem_id="output")
                with gr.Row(elem_id="marking"):
                    colour = gr.Checkbox(True, label="Mark unlikely tokens", container=False, min_width=COLUMN)
                    gr.HTML(_legend(), min_width=COLUMN)
                command = gr.HTML(elem_id="command", visible=with_commands)
            with gr.Column(elem_id="settings"):
                model, second = _model_fields()
                decoding = gr.Dropdown(
                    list(STRATEGIES), value=FIRST_STRATEGY, label="Decoding", elem_id="decoding", filterable=False
                )
                fields = _setting_fields(service)
            with gr.Column(elem_id="history"), gr.Accordion("History", open=False):
                history = gr.HTML(history_html([], with_commands))
                with gr.Row():
                    save = gr.Button("Download as JSON Lines", size="sm", min_width=COLUMN)
                    clear = gr.Button("Clear", size="sm", min_width=COLUMN)
                lines = gr.Textbox(visible="hidden")
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        generate.click(
            handlers.generate,
            [prompt, model, second, decoding, records, *fields.values()],
            [alert, status, output, command, generate, stop, records, history],
            api_name="press_generate",
            concurrency_limit=None,  # `service` has its own queue, in which visitors see their place
            **hidden,
        )
        stop.click(handlers.stop, queue=False, **hidden)
        decoding.change(handlers.choose_strategy, decoding, list(fields.values()), queue=False, **hidden)
        save.click(handlers.history_lines, records, lines, queue=False, **hidden).then(
            None, lines, None, js="(text) => { window.gpt2Save(text); }", **hidden
        )
        clear.click(handlers.clear_history, None, [records, history], queue=False, **hidden)
        colour.change(None, colour, None, js="(on) => { window.gpt2Colour(on); }", **hidden)
        page.load(handlers.open_page, None, [model, second, prompt, alert], **hidden)
        page.unload(handlers.stop)
        gr.api(handlers.generate_text, api_name="generate", concurrency_limit=None)
    return page


def _model_fields() -> tuple[gr.Dropdown, gr.Dropdown]:
    return (
        gr.Dropdown([], label="Model", allow_custom_value=True, elem_id="model", info="Choose, or type a folder"),
        gr.Dropdown(
            [], label="Second model", allow_custom_value=True, elem_id="second",
            info="Writes beside it: same prompt, same seed",
        ),
    )  # fmt: skip


def _setting_fields(service: GenerationService) -> dict[str, Any]:
    """A component for each setting, in the order of the schema: `choose_strategy` shows those that are in use."""
    specs = field_specs()
    sliders = {"max_new_tokens": service.limits.new_tokens, "num_sequences": service.limits.rows}
    made: dict[str, Any] = {}
    for key, most in sliders.items():
        start = DEFAULT_NEW_TOKENS if key == "max_new_tokens" else 1
        made[key] = gr.Slider(1, most, start, step=1, label=specs[key].label, visible=uses(FIRST_STRATEGY, key))
    made["seed"] = gr.Textbox(
        label="Seed", placeholder="empty: another each time", elem_id="set-seed", info=specs["seed"].info
    )
    rest = [spec for key, spec in specs.items() if key not in made]
    with gr.Row(elem_classes="pairs"):
        made |= {spec.key: _component(spec) for spec in rest if spec.is_basic}
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes="pairs"):
        made |= {spec.key: _component(spec) for spec in rest if not spec.is_basic}
    return {key: made[key] for key in specs}


def _component(spec: FieldSpec) -> Any:
    common: dict[str, Any] = {
        "label": spec.label, "info": spec.info, "visible": uses(FIRST_STRATEGY, spec.key), "elem_id": f"set-{spec.key}",
        "value": as_typed(default_of(FIRST_STRATEGY, spec.key)), "min_width": COLUMN,
    }  # fmt: skip
    if spec.kind == "choice":
        choices = [("default", ""), *((choice, choice) for choice in spec.choices)]
        return gr.Dropdown(choices, filterable=False, **common)
    if spec.kind in ("lines", "ids"):
        return gr.Textbox(lines=2 if spec.kind == "lines" else 1, **common)
    # Not gr.Number, which sends 0 for an empty field.
    return gr.Textbox(placeholder="off" if spec.key in DRAWS else "default", max_lines=1, **common)


def _legend() -> str:
    names = [f"below {100 * bound:g} %" for bound in SCALE]
    steps = "".join(
        f'<span><i style="background: var(--unlikely-{level})"></i>{name}</span>'
        for level, name in enumerate(names, start=1)
    )
    return (
        f'<div class="legend"><span>Probability by the model alone:</span>{steps}'
        "<span>Point at a token, or tap it, for what else it might have been.</span></div>"
    )
