"""Writes crates/engine/tests/golden/prompts.json: prompts, and what Wan's pipeline in diffusers makes of them.

    pip install torch==2.11.0 diffusers==0.42.1 transformers==5.23.0 ftfy==6.3.1 && python tools/golden/prompts.py
"""

import json
from pathlib import Path

import ftfy
import diffusers
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

PLAIN = [
    "", "a cat", "  a\tcat \n on  grass ", "salt &amp;amp; pepper", "a &lt;b&gt; c", "1 < 2 &amp; 3 > 2",
    "the cat’s “toy”", "‘single’ ‚low‘ „low“ «guillemets» ‹single›", "a café at dusk", "naïve façade, Ærø, Łódź, İstanbul",
    "CAFÉ” closed", "“É” and “Ü”", "20 °C, ±5 %, 3 × 4 = 12, ½ litre", "50 € or £40, ¥100", "привет мир, кошка на траве",
    "一只猫在草地上奔跑", "猫が草の上を走る。", "고양이가 잔디 위를 걷는다", "γάτα στο γρασίδι", "قطة على العشب", "חתול על הדשא",
    "ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ１２３", "ﬁreﬂies and ﬀ ﬃ ﬄ ﬅ ﬆ", "Ĳsselmeer ĳs ŉ Ǆ ǅ ǆ Ǉ ǈ ǉ Ǌ ǋ ǌ Ǳ ǲ ǳ", "ﾊﾝｶｸ ｶﾞｷﾞ",
    "\x1b[36;44mblue\x1b[0m text", "a\x00b\x07c\x7fd", "zero\u200bwidth\ufeffmark", "line one\r\nline two\rline three\u2028four\u2029five",
    "cafe\u0301 de\u0301ja\u0300 vu", "a 🐈 runs 🏃‍♀️ fast", "🇩🇪 flag", "O’Neil — dash – dash … dots", "a•b·c", "50% off – “big sale”…",
    "déjà vu: ‘à la carte’", "São Paulo, Curaçao, Malmö, Zürich", "él dijo «sí»", "“¿Qué?” “¡Sí!”", "Â is a letter", "l’été à Paris",
    "Ørsted’s Ångström", "¼ ½ ¾ ® © ™", "Ñandú…", "ÀÉÎÕÜ", "§ 5 ¶ 3", "º ª", "tab\tand\u00a0nbsp",
]
GARBLED = [
    "café", "the cat’s “toy”", "naïve façade", "20 °C", "São Paulo — Curaçao", "l’été à la mer", "50 € or £40",
    "привет мир", "猫が走る", "一只猫", "a 🐈 runs", "Zürich, Malmö, Łódź", "¿Qué? ¡Sí!", "‘single’ quotes…", "• bullet", "½ litre",
    "Dvořák’s cello", "Ærø and Ørsted", "100 µm", "jalapeño",
]


def windows_1252(text: str) -> str:
    """UTF-8 read as Windows-1252, undefined bytes as Latin-1: what browsers and editors do."""
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte) for byte in text.encode()
    )


texts = list(PLAIN)
texts += [windows_1252(text) for text in GARBLED]
texts += [text.encode().decode("latin-1") for text in GARBLED]
texts += [f"A photo of {windows_1252(text)}, in the style of Vermeer" for text in GARBLED]
texts += [windows_1252(windows_1252(text)) for text in GARBLED[:6]]
texts += ["It’s a cafÃ©", "cafÃ© â€“ open", "IÃ±tÃ«rnÃ¢tiÃ´nÃ lizÃ¦tiÃ¸n", "&lt;cafÃ©&gt;", "\x93quoted\x94 \x85"]
pairs = [{"raw": text, "clean": prompt_clean(text)} for text in texts]
source = f"Made by prompt_clean of diffusers {diffusers.__version__}'s pipeline_wan.py with ftfy {ftfy.__version__}"
path = Path(__file__).parents[2] / "crates/engine/tests/golden/prompts.json"
path.write_text(json.dumps({"source": source, "pairs": pairs}, ensure_ascii=True, indent=1) + "\n")
changed = sum(pair["raw"] != pair["clean"] for pair in pairs)
print(f"{path}: {len(pairs)} prompts, {changed} of them changed")
