"""One to two kilobytes of text of each kind, the same for every report.

Short enough to read, varied enough to rank tokenizers; not a corpus: for firm numbers on one kind
give the report a source of it. "other scripts" is the same paragraph in eight languages.
"""

_ENGLISH = """\
The lighthouse keeper wrote down the weather every morning, even when there was nothing to say \
about it. On the ninth of November he noted: "Fog until ten, then a pale sun; wind from the \
south-west." His daughter, who was learning to read, couldn't understand why anybody would keep \
such a book. "Because," he said, "one day someone will want to know what today was like, and \
you and I won't be here to tell them."

Years later she found the notebooks in a tin box under the stairs. There were forty-one of them, \
wrapped in oilcloth, and the handwriting grew smaller as paper became more expensive. She didn't \
read them in order. She looked up her own birthdays first, then the storms that people still \
talked about, and finally the ordinary days: low cloud, light rain, visibility three miles. \
Nothing remarkable had happened on any of them. That was, she slowly realised, the remarkable \
thing.

Meteorologists from the university came to photograph the pages. They explained that an \
unbroken series of observations, however modest, is worth more than a brilliant but occasional \
measurement; statistics can forgive an inaccurate thermometer, but it cannot interpolate \
silence. Would she mind, they asked, if the originals went to the archive? She'd mind terribly, \
she answered, and drove them there herself the following week.
"""

_CODE = '''\
from collections import defaultdict
from pathlib import Path


class InvertedIndex:
    """Maps each word to the documents that contain it."""

    def __init__(self, *, lowercase: bool = True) -> None:
        self._postings: dict[str, set[int]] = defaultdict(set)
        self.lowercase = lowercase

    def add(self, doc_id: int, text: str) -> None:
        for word in text.lower().split() if self.lowercase else text.split():
            self._postings[word.strip(".,;:!?")].add(doc_id)

    def search(self, query: str, *, limit: int = 10) -> list[int]:
        if not (words := query.split()):
            raise ValueError(f"empty query: {query!r}")
        found = set.intersection(*(self._postings.get(w, set()) for w in words))
        return sorted(found)[:limit]


if __name__ == "__main__":
    index = InvertedIndex()
    for i, path in enumerate(sorted(Path.cwd().glob("**/*.txt"))):
        index.add(i, path.read_text(encoding="utf-8"))
    print(index.search("hello world"))  # [0, 3, 17]

// The same idea in the browser.
export async function loadIndex(url, { signal } = {}) {
  const response = await fetch(url, { signal });
  if (!response.ok) throw new Error(`HTTP ${response.status} for ${url}`);
  const index = new Map();
  for (const [word, ids] of Object.entries(await response.json())) {
    index.set(word, new Set(ids.map((id) => id >>> 0)));
  }
  return (query) => query.split(/\\s+/).map((w) => index.get(w) ?? new Set());
}
'''

_GERMAN = """\
Der Leuchtturmwärter schrieb jeden Morgen das Wetter auf, auch wenn es darüber nichts zu \
berichten gab. Am neunten November notierte er: „Nebel bis zehn Uhr, danach blasse Sonne; Wind \
aus Südwest.“ Seine Tochter, die gerade lesen lernte, begriff nicht, warum jemand ein solches \
Buch führte. „Weil“, sagte er, „irgendwann jemand wissen möchte, wie es heute gewesen war, und \
dann sind wir beide nicht mehr hier, um es ihm zu erzählen.“

Viele Jahre später fand die Tochter seine Aufzeichnungen in einer Blechkiste hinter der \
Kellertreppe: einundvierzig Hefte, in Wachstuch eingeschlagen, und je teurer das Papier geworden \
war, desto kleiner wurde die Schrift. Zuerst suchte sich die Tochter ihre eigenen Geburtstage \
heraus, dann die Sturmfluten, über die man im Dorf noch immer sprach, und schließlich gewöhnliche \
Wochentage: tiefe Bewölkung, leichter Nieselregen, mäßige Sichtverhältnisse.

Wissenschaftler des Instituts für Küstenforschung kamen, um die Seiten zu fotografieren. Keine \
noch so genaue Einzelmessung, erklärten sämtliche Besucher, könne eine ununterbrochene \
Beobachtungsreihe ersetzen. Ungenauigkeiten des Thermometers ließen sich nachträglich \
herausrechnen; fehlende Jahrzehnte dagegen nicht. Ob man die Originale dem Landesarchiv \
überlassen könne? Höchst ungern, lautete die Antwort – und in der folgenden Woche fuhr ein \
vollgepacktes Auto dorthin.
"""

_CHINESE = """\
灯塔看守人每天早上都把天气记下来，哪怕没有什么可写的。十一月九日，他写道：“大雾，十点散去，\
随后有淡淡的阳光；西南风。”他的女儿正在学认字，不明白为什么有人要写这样的本子。“因为，”他说，\
“总有一天会有人想知道今天是什么样子，而那时你和我都不在这里，没法告诉他们了。”

许多年以后，她在楼梯下面的铁皮箱里找到了这些笔记本。一共四十一本，用油布包着；纸越来越贵，字也\
越写越小。她没有按顺序读。她先查自己的生日，再查那些至今还有人谈起的风暴，最后才看平常的日子：\
低云，小雨，能见度三海里。那些日子里没有发生任何特别的事。她慢慢明白，这正是最特别的地方。

大学的气象学家来给每一页拍照。他们解释说，一份从不间断的观测记录，无论多么简单，都比偶尔一次的\
精确测量更有价值：温度计不准可以校正，缺少的年份却无法补上。他们问她是否愿意把原件交给档案馆。\
她说她很舍不得，但第二个星期，她还是亲自开车把它们送了过去。

補充說明：本文後半段改用繁體字，以便比較兩種寫法。資料庫、軟體與網路等詞彙在各地的說法並不相同，\
標點符號也略有差異；「引號」的形狀就是一例。
"""

_NUMBERS = """\
date,station,temp_c,pressure_hpa,wind_m_s,rain_mm
1987-11-09,0417,7.4,1013.25,11.8,0.0
1987-11-10,0417,6.9,1009.80,14.2,3.6
1987-11-11,0417,-0.3,998.05,21.7,18.25
1987-11-12,0417,2.1,1001.00,9.0,0.4

The total for 2023 was $1,284,093.57, up 12.5% from $1,141,416.51 in 2022; the average of 365 days
is $3,518.06. Call +1 (555) 010-4477 or +49 30 5550 1234, ext. 89, between 08:30 and 17:45.

pi = 3.14159265358979323846, e = 2.71828182845904523536, sqrt(2) = 1.41421356237309504880
c = 299792458 m/s, h = 6.62607015e-34 J s, N = 6.02214076e23, 2**64 = 18446744073709551616
0x7fff5fbff8c0 0b101101 0o755 1e-9 1_000_000 -273.15 00:1A:2B:3C:4D:5E 192.168.0.1/24 v3.11.7-rc2

| n | n^2 | n^3 | n! |
|--:|----:|----:|---:|
| 7 | 49 | 343 | 5040 |
| 12 | 144 | 1728 | 479001600 |
| 25 | 625 | 15625 | 15511210043330985984000000 |

17 + 26 = 43; 128 * 64 = 8192; 1000 / 8 = 125; 99999 + 1 = 100000; 3/4 = 0.75; 15 % 4 = 3
2024-02-29T23:59:60Z 29/02/2024 Feb 29, 2024 1709251199 ½ ¾ x² H₂O 10⁻⁹ Ⅳ ٣٤٥ 一百二十三 ①②③
"""

_EMOJI = """\
good morning! ☀️☕🥐 … running late again 🏃‍♀️💨 see you at 9️⃣:3️⃣0️⃣ 😅
the whole family is here 👨‍👩‍👧‍👦 and the dogs too 🐕‍🦺🐩 😂😂😂🤣 #blessed 🙏🏽🙏🏿
trip plan: 🇩🇪 → 🇫🇷 → 🇮🇹 → 🇯🇵 → 🇧🇷 ✈️🚄🚲 then home 🏠❤️
flags that are longer than they look: 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🏴󠁧󠁢󠁷󠁬󠁳󠁿 🏳️‍🌈 🏳️‍⚧️ 🏴‍☠️
👍 👍🏻 👍🏼 👍🏽 👍🏾 👍🏿  👩🏽‍💻 👨🏿‍🚀 🧑🏻‍🎨 👩‍❤️‍💋‍👨 🧑🏾‍🤝‍🧑🏼
status: ✅ done  ⚠️ careful  ❌ failed  🔁 retry ×3  ⏳ waiting  🚧 wip  💯 ⭐⭐⭐⭐☆
weather 🌤️🌧️⛈️🌨️🌪️🌈 food 🍕🍣🌮🥗🍜 animals 🦊🐼🦁🐸🦉🐙 sports ⚽🏀🎾🏓🥇
:-) ;-P :'( ¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻ ʕ•ᴥ•ʔ (◕‿◕✿) <3 ♥ ♪♫ →←↑↓ █▓▒░
"""

_OTHER_SCRIPTS = """\
Le gardien du phare notait le temps chaque matin, même lorsqu'il n'y avait rien à en dire. Son \
enfant, qui apprenait à lire, ne comprenait pas pourquoi l'on tenait un tel cahier.

Смотритель маяка каждое утро записывал погоду, даже если сказать о ней было нечего. Его дочь, \
которая училась читать, не понимала, зачем кто-то ведёт такую тетрадь.

كان حارس المنارة يدوّن حالة الطقس كل صباح، حتى حين لا يكون هناك ما يُقال. ولم تفهم ابنته، التي \
كانت تتعلم القراءة، لماذا يحتفظ أحد بدفتر كهذا.

שומר המגדלור רשם את מזג האוויר בכל בוקר, גם כשלא היה מה לומר עליו.

प्रकाशस्तंभ का रखवाला हर सुबह मौसम लिखता था, तब भी जब कहने को कुछ नहीं होता था। उसकी बेटी, जो \
पढ़ना सीख रही थी, समझ नहीं पाती थी कि कोई ऐसी किताब क्यों रखता है।

灯台守は、書くことが何もない日でも、毎朝天気を記録していた。文字を習い始めた娘には、なぜそんな\
ノートをつけるのか分からなかった。

등대지기는 적을 것이 없는 날에도 매일 아침 날씨를 기록했다. 글을 배우던 딸은 왜 그런 공책을 \
쓰는지 이해하지 못했다.

ผู้ดูแลประภาคารจดบันทึกสภาพอากาศทุกเช้า แม้ในวันที่ไม่มีอะไรจะเขียน
"""

KINDS: dict[str, str] = {
    "English": _ENGLISH,
    "code": _CODE,
    "German": _GERMAN,
    "Chinese": _CHINESE,
    "numbers": _NUMBERS,
    "emoji": _EMOJI,
    "other scripts": _OTHER_SCRIPTS,
}
"""Kind of text to a sample of it."""
