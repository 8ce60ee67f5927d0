"""Runs a file in DeepSparse: a program for the Python that has it, which may be 3.8.

It imports nothing of Secateur. Each line of standard input is a JSON object: the first names the
file, the second may name an .npz file with its inputs, each other one is a run. Each is answered
with a line.
"""

import json
import os
import sys

import numpy


def load(message):
    """The compiled model, and what it takes."""
    import deepsparse  # pyright: ignore[reportMissingImports]
    import onnx

    model = onnx.load(message["path"], load_external_data=False)
    held = {of.name for of in model.graph.initializer}
    taken = [of for of in model.graph.input if of.name not in held]
    free = [[of.dim_value or None for of in one.type.tensor_type.shape.dim] for one in taken]
    shapes = []
    for number, sizes in enumerate(free):
        given = message["shapes"][number] if number < len(message["shapes"]) else []
        known = given if len(given) == len(sizes) else None
        shapes.append(
            [
                size or (known[axis] if known else message["batch"])
                for axis, size in enumerate(sizes)
            ]
        )
    engine = deepsparse.compile_model(  # pyright: ignore[reportAttributeAccessIssue]
        message["path"],
        batch_size=shapes[0][0],
        num_cores=message["threads"],
        input_shapes=shapes,
    )
    kinds = [
        onnx.helper.tensor_dtype_to_np_dtype(of.type.tensor_type.elem_type).name for of in taken
    ]
    inputs = [
        {"name": one.name, "shape": shapes[number], "dtype": kinds[number]}
        for number, one in enumerate(taken)
    ]
    return engine, inputs


def main():
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what DeepSparse prints about itself
    engine, values = None, None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = {"done": 1}
            if "path" in message:
                engine, inputs = load(message)
                answer = {"inputs": inputs}
            elif "values" in message:
                with numpy.load(message["values"]) as held:
                    values = [held[name] for name in held.files]
            else:
                engine.run(values)  # pyright: ignore[reportOptionalMemberAccess]
        except Exception as error:
            answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
