"""Texts to speak: own sentences in seventeen languages, and an endless supply of shuffled words, theirs and (where the
package wordfreq is installed) the commonest of each language.

English leans on m, b, p, f, v, w, "oo" and "ee": the sounds whose mouth shapes differ most. Mandarin is in pinyin and
Japanese in kana, the spellings espeak-ng reads. The last sentences of every language are held out of training.
"""

from __future__ import annotations

import importlib.util
import zlib
from functools import lru_cache

import numpy as np

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "My mother baked five warm blueberry muffins before breakfast.",
        "Please move the big blue box above the shelf.",
        "We wove a wide woollen web for Wendy.",
        "Four of our fine friends found a few old film reels.",
        "Would you move the moon if you knew how to do it?",
        "Bob put the paper map beside the bathroom mirror.",
        "The swift fox vanished over the frozen river.",
        "People often believe what they want to believe.",
        "Every evening we feed the sheep and the geese.",
        "I have been waiting for a bus since half past five.",
        "A purple umbrella popped open in the middle of the room.",
        "You should choose a good book and read it by the pool.",
        "Maybe the problem is bigger than we imagined.",
        "Five vivid violets covered the valley floor.",
        "Mum and Pop moved to a farm near the beach.",
        "What a wonderful way to welcome the weekend!",
        "He whispered a few words, and then he walked away.",
        "The boom of the drum woke up the whole village.",
        "Can you see the green leaves between the trees?",
        "Open the window, it is far too warm in here.",
        "Our computer program runs from morning to midnight.",
        "She sells soup, soap and simple summer shoes.",
        "Give me the phone number of the famous film maker.",
        "The bee flew over the beautiful bloom of the plum.",
        "I am happy to help, but please be patient with me.",
        "No, no, no! That is not what I meant at all.",
        "A cup of coffee and a piece of pumpkin pie, please.",
        "Tomorrow the temperature may fall below zero.",
        "Who knew that the new shoe would lose its blue hue?",
        "Boys and girls jumped over puddles in the park.",
        "In the beginning there was a very small idea.",
        "Public opinion may change from one month to the next.",
        "The chef chopped chives, cheese and a cherry.",
        "Each of the three teams needs to meet me this week.",
        "Always remember to lock up before you leave.",
        "The old oak over the road grows slowly.",
        "Amazing! Absolutely amazing! I have never heard a better joke.",
        "My brother Philip plays piano and also beats the bongo drums.",
        "Measure the pleasure of a leisurely vision.",
        "Thank you for coming, and thanks for the thoughtful gift.",
        "Far above the farm, a falcon floats on the warm wind.",
        "Why would we want one when we won twenty two?",
        "Peter Piper probably prefers pepper to paprika.",
        "Ah, so that is how the pump empties the bath.",
        "The museum moved its mummies to a new room in May.",
        "Fifty five firemen fought the fierce fire.",
        "Pay the bill, pick up the bag, and meet me by the ramp.",
        "Few people view the world from above the clouds.",
        "I was born in a small town by the northern sea.",
        "Let me tell you about the time we built a boat.",
        "Proof of the theorem follows from the lemma above.",
        "Both of them wore bright yellow boots and a brown vest.",
        # held out
        "Mabel bought a bamboo flute from a man in Baltimore.",
        "You and I both know the view from the roof is superb.",
        "The wolves moved from the woods to the foot of the bluff.",
        "Vera never wavered, even when the wave swept over her.",
        "Please be brief, my time is almost up.",
        "A mere fifteen people came to see the opening of the play.",
        "Who would have thought that the robot could hum?",
        "Happy birthday to you, my beloved friend.",
    ),
    "de": (
        "Mein Bruder baut ein bequemes Boot am Ufer.",
        "Wir wollen morgen früh über die Brücke gehen.",
        "Der Apfelbaum im Park blüht immer im Mai.",
        "Bitte bringen Sie mir eine Tasse Pfefferminztee.",
        "Fünf fleißige Frauen führen viele fremde Freunde.",
        "Das Wetter wird am Wochenende wieder wunderbar.",
        "Ich habe gestern ein schönes Buch gelesen.",
        "Papa pumpt das Rad auf, und Mama packt den Koffer.",
        "Öffnen Sie das Fenster, es ist zu warm hier.",
        "Viele Menschen glauben, was sie glauben möchten.",
    ),
    "fr": (
        "Mon frère a mangé une bonne pomme ce matin.",
        "Vous pouvez venir avec nous au bord de la mer.",
        "La petite fille promène son beau chien blanc.",
        "Bonjour madame, je voudrais un bouquet de fleurs bleues.",
        "Il pleut beaucoup, prenez donc votre parapluie.",
        "Où habitez-vous, et comment vous appelez-vous ?",
        "Le vieux moulin tourne doucement dans le vent.",
        "Ma mère prépare une soupe aux poireaux.",
        "Une feuille morte flotte sur l'eau de la rivière.",
        "Je ne sais pas pourquoi il fait si froid.",
    ),
    "es": (
        "Mi hermano compró un bonito barco de vapor.",
        "Por favor, abre la puerta y baja la música.",
        "El perro blanco bebe mucha agua fría.",
        "Mañana por la mañana vamos a visitar el museo.",
        "Me gusta pasear por el bosque con mi familia.",
        "La abuela prepara una sopa muy buena para todos.",
        "No sé por qué el autobús viene siempre tarde.",
        "Pepe pone poca pimienta en la paella.",
        "Vivimos en un pueblo pequeño cerca del mar.",
        "Muchas veces pienso en aquel viaje.",
    ),
    "it": (
        "Mia mamma prepara una buona zuppa di pomodoro.",
        "Vorrei un bicchiere di vino bianco, per favore.",
        "Il bambino dorme profondamente nella sua camera.",
        "Domani proviamo a partire prima delle sette.",
        "La finestra aperta dà sul mare blu.",
        "Babbo, puoi comprare un po' di pane fresco?",
        "Mi piace molto passeggiare lungo il fiume.",
        "Questo problema è più difficile del previsto.",
        "Ogni uomo ha bisogno di un vero amico.",
        "Le foglie volano via con il vento.",
    ),
    "pt": (
        "Minha mãe fez um bolo de banana muito bom.",
        "Você pode abrir a porta para mim, por favor?",
        "O menino bebeu um copo de água bem fria.",
        "Amanhã vamos passear no parque com a família.",
        "A pomba branca voou por cima do muro.",
        "Bom dia, tudo bem com vocês?",
        "O meu amigo mora perto da praia.",
        "Não sei por que o ônibus está tão atrasado.",
        "Fomos ver um filme novo no sábado.",
        "Ele vive em uma pequena vila no norte.",
    ),
    "pl": (
        "Moja mama piecze pyszne ciasto z jabłkami.",
        "Proszę otworzyć okno, bo jest bardzo ciepło.",
        "W sobotę pojedziemy pociągiem nad morze.",
        "Mały pies biega po parku od rana.",
        "Bardzo lubię czytać dobre książki wieczorem.",
        "Czy możesz mi pomóc przy tym problemie?",
        "Babcia kupiła pięć bułek i mleko.",
        "Wiatr wieje mocno, a fale są wysokie.",
        "Nie wiem, dlaczego autobus się spóźnia.",
        "Mój brat mówi po polsku i po francusku.",
    ),
    "ru": (
        "Моя мама купила новую белую вазу.",
        "Пожалуйста, откройте окно, здесь очень тепло.",
        "Мой брат любит плавать в быстрой реке.",
        "Папа и бабушка пьют вкусный чай.",
        "Завтра утром мы поедем в большой город.",
        "Маленький мальчик играет на барабане.",
        "Почему автобус опять опаздывает?",
        "Ветер дует, и волны бьются о берег.",
        "Я хочу купить хорошую книгу.",
        "Все люди верят в то, во что хотят верить.",
    ),
    "tr": (
        "Annem bu sabah bize börek yaptı.",
        "Lütfen pencereyi aç, burası çok sıcak.",
        "Küçük köpek bahçede koşuyor.",
        "Yarın babamla birlikte pazara gideceğiz.",
        "Mavi kuş pembe bulutların üstünde uçuyor.",
        "Ben her akşam güzel bir kitap okurum.",
        "Otobüs neden hep geç geliyor?",
        "Bütün arkadaşlarım benimle birlikte geldi.",
        "Deniz kıyısında uzun bir yol var.",
        "Benim adım Mehmet, memnun oldum.",
    ),
    "hi": (
        "मेरी माँ बहुत अच्छा खाना बनाती है।",
        "कृपया खिड़की खोल दो, यहाँ बहुत गरमी है।",
        "हम कल सुबह बाज़ार जाएँगे।",
        "मेरा भाई बाग में फूल लगाता है।",
        "बच्चे पानी में खेल रहे हैं।",
        "आपका नाम क्या है, और आप कहाँ रहते हैं?",
        "पिताजी ने एक नई पुस्तक खरीदी।",
        "बस आज फिर देर से आ रही है।",
        "मुझे पहाड़ों की हवा बहुत पसंद है।",
        "वह हमेशा सच बोलता है।",
    ),
    "ja": (
        "わたしの ははは おいしい パンを やきます。",
        "まどを あけて ください、とても あついです。",
        "あした ともだちと うみへ いきます。",
        "ぼくの いもうとは ピアノを べんきょう しています。",
        "バスは まだ きませんね。",
        "むかし むかし、やまに ふるい むらが ありました。",
        "この みせの ラーメンは ほんとうに うまい。",
        "まいにち ほんを よむのが すきです。",
        "ふねが みなとを ゆっくり でました。",
        "すみません、えきは どこですか。",
    ),
    "cmn": (
        "wo3 de5 ma1ma5 mei3 tian1 zao3shang5 zuo4 mian4bao1.",
        "qing3 ba3 men2 da3kai1, zhe4li3 fei1chang2 re4.",
        "ming2tian1 wo3men5 yi4qi3 qu4 gong1yuan2 pao3bu4.",
        "ba4ba5 mai3 le5 yi4 ben3 xin1 shu1.",
        "wo3 de5 peng2you5 zhu4 zai4 bei3jing1.",
        "bai2 mao1 pa2 shang4 le5 wu1ding3.",
        "ni3 wei4 shen2me5 bu4 xi3huan1 chi1 ping2guo3?",
        "xiao3 peng2you5 men5 zai4 wai4mian4 wan2.",
        "feng1 hen3 da4, yu3 ye3 hen3 da4.",
        "fu4qin1 he2 mu3qin1 dou1 hen3 mang2.",
    ),
    "ko": (
        "우리 엄마는 매일 아침 빵을 만들어요.",
        "문을 열어 주세요, 여기는 너무 더워요.",
        "내일 친구와 함께 바다에 갈 거예요.",
        "아빠는 새 책을 한 권 샀습니다.",
        "버스가 왜 이렇게 늦게 와요?",
        "봄바람이 불고 꽃이 피었습니다.",
        "저는 음악을 아주 좋아합니다.",
        "작은 나비가 푸른 밭 위를 날아요.",
        "이름이 무엇입니까, 만나서 반갑습니다.",
        "비가 오면 우산이 필요해요.",
    ),
    "fi": (
        "Minun äitini leipoo hyvää leipää joka aamu.",
        "Avaa ikkuna, täällä on liian lämmin.",
        "Huomenna menemme yhdessä puistoon.",
        "Pieni poika puhaltaa ison kuplan.",
        "Veljeni muutti vanhaan kylään meren rannalle.",
        "Miksi bussi on aina myöhässä?",
        "Syön mielelläni puuroa ja marjoja.",
        "Tuuli puhaltaa yli suuren metsän.",
        "Hyvää päivää, mitä teille kuuluu?",
        "Luen hyvän kirjan illalla.",
    ),
    "cs": (
        "Moje maminka peče výborný bábovkový koláč.",
        "Prosím, otevřete okno, je tu moc teplo.",
        "Zítra pojedeme vlakem k babičce.",
        "Malý pes běhá po zahradě.",
        "Proč má autobus zase zpoždění?",
        "Můj bratr umí mluvit polsky i francouzsky.",
        "Tři sta třicet tři stříbrných stříkaček.",
        "Vítr fouká přes pole a les.",
        "Večer rád čtu dobrou knihu.",
        "Pan Novák pomalu popíjí kávu.",
    ),
    "nl": (
        "Mijn broer bouwt een mooie boot aan het water.",
        "Doe het raam open, het is hier veel te warm.",
        "Morgen gaan we met opa en oma naar het park.",
        "Mama bakt elke ochtend vers brood.",
        "Waarom komt de bus altijd te laat?",
        "De vogels vliegen over de wijde velden.",
        "Ik lees graag een goed boek in de avond.",
        "Veel mensen vinden dit een moeilijk probleem.",
    ),
    "sv": (
        "Min mamma bakar gott bröd varje morgon.",
        "Öppna fönstret, det är för varmt här inne.",
        "I morgon åker vi båt med pappa.",
        "Varför kommer bussen alltid för sent?",
        "En liten pojke blåser upp en blå ballong.",
        "Vinden viner över berg och vidder.",
        "Jag läser gärna en bra bok på kvällen.",
        "Många människor bor vid havet.",
    ),
}
HELDOUT_COUNT = {"en": 8}  # the last sentences are held out; two of every other language

# Beginnings and rests of made-up syllables, by split.
ONSETS = {
    "train": ("b", "p", "m", "f", "v", "w", "t", "d", "s", "n", "l", "r", "k", "g", "sh", "ch", "bl", "pr", "fl", "sm"),
    "heldout": ("b", "p", "m", "f", "v", "w", "t", "n", "l", "br", "pl", "fr", "sp", "th"),
}
RIMES = {
    "train": ("a", "ee", "oo", "o", "i", "am", "op", "eb", "um", "iff", "ave", "oy", "ow", "en", "ar"),
    "heldout": ("a", "ee", "oo", "om", "ap", "ib", "uff", "ove", "ay", "our"),
}

COMMON_WORDS = 12000  # of a language, before one in ten is held out


def language_key(language: str) -> str:
    """Key in `SENTENCES` of an espeak-ng language name: "en-gb-scotland" -> "en". ValueError where it has none."""
    key = language.split("-")[0]
    if key not in SENTENCES:
        raise ValueError(f"no sentences in {language!r}; there are {sorted(SENTENCES)}")
    return key


def sentences(language: str, split: str) -> tuple[str, ...]:
    """The sentences of a language (an espeak-ng name) in one split, "train" or "heldout"; ValueError for another."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    key = language_key(language)
    count = HELDOUT_COUNT.get(key, 2)
    return SENTENCES[key][:-count] if split == "train" else SENTENCES[key][-count:]


def _pseudo_word(rng: np.random.Generator, split: str) -> str:
    syllables = int(rng.integers(1, 4))
    return "".join(str(rng.choice(ONSETS[split])) + str(rng.choice(RIMES[split])) for _ in range(syllables))


@lru_cache(maxsize=64)
def common_words(key: str, split: str) -> tuple[str, ...]:
    """The commonest words of a language, commonest first; a word in ten is held out. () where wordfreq is not installed
    or has none, and where espeak-ng is given another script here than the usual one."""
    if key in ("ja", "cmn") or importlib.util.find_spec("wordfreq") is None:
        return ()
    import wordfreq

    if key not in wordfreq.available_languages("small"):
        return ()
    words = (word for word in wordfreq.top_n_list(key, COMMON_WORDS, "small") if word.isalpha())
    return tuple(word for word in words if (zlib.crc32(word.encode()) % 10 == 0) == (split == "heldout"))


def _shuffled(rng: np.random.Generator, language: str, split: str) -> str:
    """Words of the split's sentences in random order, in English with made-up words among them."""
    pool = [word.strip(".,!?।。、") for sentence in sentences(language, split) for word in sentence.split()]
    pool = [word for word in pool if word]
    words = [pool[index] for index in rng.integers(0, len(pool), int(rng.integers(4, 12)))]
    if language_key(language) == "en":
        words = [_pseudo_word(rng, split) if rng.random() < 0.35 else word for word in words]
    return _punctuated(rng, words)


def _from_common_words(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """Words as often as people use them, which is about one over their rank."""
    ranks = len(words) ** rng.random(int(rng.integers(4, 13)))
    return _punctuated(rng, [words[min(int(rank), len(words)) - 1] for rank in ranks])


def _punctuated(rng: np.random.Generator, words: list[str]) -> str:
    if len(words) > 6:
        words[len(words) // 2 - 1] += ","
    return " ".join(words) + str(rng.choice([".", ".", "?", "!"]))


def random_sentence(rng: np.random.Generator, language: str, split: str = "train") -> str:
    """A sentence to speak, so drawn that training does not learn them by heart: common words in random order (mostly,
    where there are any), the words of the split's sentences in random order, or one of them as written."""
    common = common_words(language_key(language), split)
    if common and rng.random() < 0.6:
        return _from_common_words(rng, common)
    if rng.random() < 0.5:
        return str(rng.choice(np.array(sentences(language, split), dtype=object)))
    return _shuffled(rng, language, split)
