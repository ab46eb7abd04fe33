"""What a user of an exported C program sees: its header, and the functions to call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdtune.model.c.bodies import begin_stream, write_product
from qdtune.model.c.singles import write_score
from qdtune.model.c.stages import Stage
from qdtune.model.c.text import Text
from qdtune.reader import Model
from qdtune.spec.sizes import FLOAT_BYTES
from qdtune.spec.tasks import ABOVE_0, LARGEST, NO_CLASS, ClassRule

CLASS_COMMENTS = {
    LARGEST: """
/* The place of the largest output, the first of equal ones. It needs no floats if all layers have codes. Then two
   outputs that are equal but for the rounding of floats may count as equal, or in their exact order. */""",
    ABOVE_0: """
/* 1 if the output is above 0, else 0. It needs no floats if all layers have codes. Then an output that is 0 but for
   the rounding of floats may count as above 0 or not. */""",
}


@dataclass(frozen=True)
class Interface:
    """The functions of a program that a user calls: `NAME_logits`, and `NAME_class` if there are classes.

    Attributes:
        name: how theirs begin.
        argument: what they take.
        model: of the program.
        classes: how a class follows from the outputs, see `Task.classes`.
    """

    name: str
    argument: str
    model: Model
    classes: ClassRule

    @property
    def _outputs(self) -> int:
        return int(self.model.program["outputs"])

    @property
    def _given(self) -> str:
        """The name of the argument."""
        return self.argument.rpartition("*")[2]

    def logits_bytes(self, has_scores: bool) -> int:
        """The bytes of the outputs that `NAME_class` holds itself.

        Args:
            has_scores: whether it finds the class in whole numbers, without them.
        """
        return 0 if has_scores or self.classes == NO_CLASS else FLOAT_BYTES * self._outputs

    def write_header(self, defined: Mapping[str, str | int], notes: str) -> str:
        """The text of the header.

        Args:
            defined: what it defines besides the inputs and outputs, in capitals -> value.
            notes: lines of the comment at its top.
        """
        inputs, name, upper = self.model.program["inputs"], self.name, self.name.upper()
        lines = {"INPUTS": inputs, "OUTPUTS": self._outputs, **defined}
        call = "class" if self._has_class else "logits"
        comment = notes.replace("*/", "* /").replace("/*", "/ *").replace("\n", "\n * ")
        find = (
            f"\n{CLASS_COMMENTS[self.classes]}\nint32_t {name}_class({self.argument});\n" if self._has_class else ""
        )
        return f"""/* {comment} */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

{chr(10).join(f"#define {upper}_{key} {value}" for key, value in lines.items())}
/* FLASH_BYTES: constants of {name}_{call}, without its code. RAM_BYTES: static buffers, without the
   stack. EXACT: whether the outputs are those of reader.py to the last bit. */

#ifdef __cplusplus
extern "C" {{
#endif

/* The outputs, {self._outputs} floats, of {inputs} inputs. One call at a time: the buffers are static. */
void {name}_logits({self.argument}, float *logits);
{find}
#ifdef __cplusplus
}}
#endif

#endif
"""

    @property
    def _has_class(self) -> bool:
        return self.classes != NO_CLASS

    def write_calls(self, inputs: list[str], has_scores: bool) -> str:
        """The functions.

        Args:
            inputs: the expression of what each stage takes.
            has_scores: whether there is a `class_of`.
        """
        last = len(inputs) - 1
        calls = "\n".join(f"    stage_{k}({inputs[k]}, {inputs[k + 1]});" for k in range(last))
        text = f"""static void start({self.argument})
{{
{calls}
}}

void {self.name}_logits({self.argument}, float *logits)
{{
    start({self._given});
    stage_{last}({inputs[last]}, logits);
}}
"""
        if not self._has_class:
            return text
        body = f"    start({self._given});\n    return class_of({inputs[last]});"
        return f"""{text}
int32_t {self.name}_class({self.argument})
{{
{body if has_scores else self._write_float_class()}
}}
"""

    def _write_float_class(self) -> str:
        """The statements that find the class from the outputs."""
        begin = f"    static float logits[{self._outputs}];\n    {self.name}_logits({self._given}, logits);"
        if self.classes == ABOVE_0:
            return f"{begin}\n    return logits[0] > 0.0f;"
        loop = f"for (int32_t o = 1; o < {self._outputs}; o++) {{ if (logits[o] > logits[best]) {{ best = o; }} }}"
        return f"{begin}\n    int32_t best = 0;\n    {loop}\n    return best;"

    def add_class(self, text: Text, k: int, stage: Stage, taken: str) -> bool:
        """Adds `class_of`, which finds the class in whole numbers; False if there is no such way, or no class.

        Args:
            text: gets it.
            k: the number of the last stage.
            stage: the last one.
            taken: the type of what it takes.
        """
        found = write_score(text, self.model, stage) if self._has_class else None
        if found is None or stage.op is None:
            return False
        kind, score = found
        more, product = write_product(text, stage.op, taken, "int32_t")
        begin = begin_stream(text, k)
        if self.classes == ABOVE_0:
            lines = f"""{begin}{more}    const int32_t sum = {product};
    return {score} > 0;
"""
        else:
            lines = f"""{begin}    int32_t found = 0;
    {kind} best = 0;
{more}    for (uint32_t o = 0U; o < {stage.shape[0]}U; o++) {{
        const int32_t sum = {product};
        const {kind} score = {score};
        if (o == 0U || score > best) {{ best = score; found = (int32_t)o; }}
    }}
    return found;
"""
        text.functions.append(f"\nstatic int32_t class_of(const {taken} *x)\n{{\n{lines}}}\n")
        return True
