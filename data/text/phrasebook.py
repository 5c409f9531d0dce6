"""An English–Italian parallel corpus made by rules: the embedded data of the translation demo.

Eight categories of everyday language, equal in size: numbers, dates, clock times, prices, adjectives,
verbs, places and possessives. The lexicon is in tables, each rule of grammar is one small function, and
the sentences are spread over each pattern's combinations by SHA-256: no files, no network, no random state.

English determines the Italian: "you" is always the informal singular, subject pronouns are always dropped,
questions keep the word order of statements, attributive adjectives follow their noun. A sentence occurs
once on each side, so a split by pairs is disjoint in both languages. Every sentence begins with a capital
and ends with "." or "?". To be used from outside: `phrasebook_splits` and `phrasebook_pairs`.

Where standard Italian allows two forms, one is taken throughout: centotto, centouno, quest'isola, ventuno
libri, due euro e cinquanta.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import pairwise, product

from data.errors import DataError

Pair = tuple[str, str]  # (English, Italian)

# --- Lexicon --------------------------------------------------------------------------------------------

# English, its plural, Italian, its plural, gender (mf: masculine, feminine in the plural), kinds.
# "-" for a plural: a mass noun.
NOUN_TABLE = """
book, books, libro, libri, m, item print text own
newspaper, newspapers, giornale, giornali, m, item print
magazine, magazines, rivista, riviste, f, item print
dictionary, dictionaries, dizionario, dizionari, m, item print own
letter, letters, lettera, lettere, f, paper print text long
notebook, notebooks, quaderno, quaderni, m, item own
pen, pens, penna, penne, f, item own
pencil, pencils, matita, matite, f, item own
key, keys, chiave, chiavi, f, item own
watch, watches, orologio, orologi, m, item machine own
ring, rings, anello, anelli, m, item own
phone, phones, telefono, telefoni, m, item machine own
photo, photos, foto, foto, f, paper own
ticket, tickets, biglietto, biglietti, m, item own
stamp, stamps, francobollo, francobolli, m, item
umbrella, umbrellas, ombrello, ombrelli, m, item lid own
cup, cups, tazza, tazze, f, item fragile washable own
plate, plates, piatto, piatti, m, item fragile washable
bottle, bottles, bottiglia, bottiglie, f, item fragile washable lid own
knife, knives, coltello, coltelli, m, item washable
spoon, spoons, cucchiaio, cucchiai, m, item washable
mirror, mirrors, specchio, specchi, m, item fragile
lamp, lamps, lampada, lampade, f, item machine
guitar, guitars, chitarra, chitarre, f, item own
instrument, instruments, strumento, strumenti, m, item own
towel, towels, asciugamano, asciugamani, m, item washable own
shirt, shirts, camicia, camicie, f, wear washable own
jacket, jackets, giacca, giacche, f, wear washable own
hat, hats, cappello, cappelli, m, wear own
shoe, shoes, scarpa, scarpe, f, wear washable own
scarf, scarves, sciarpa, sciarpe, f, wear washable long own
skirt, skirts, gonna, gonne, f, wear washable long own
sweater, sweaters, maglione, maglioni, m, wear washable own
dress, dresses, vestito, vestiti, m, wear washable long own
bag, bags, borsa, borse, f, item container lid own
backpack, backpacks, zaino, zaini, m, item container lid own
suitcase, suitcases, valigia, valigie, f, item container lid own
box, boxes, scatola, scatole, f, item container lid
basket, baskets, cesto, cesti, m, item container
drawer, drawers, cassetto, cassetti, m, container lid
wardrobe, wardrobes, armadio, armadi, m, container lid furniture
table, tables, tavolo, tavoli, m, support furniture
chair, chairs, sedia, sedie, f, support furniture
sofa, sofas, divano, divani, m, support furniture
bed, beds, letto, letti, m, support furniture
desk, desks, scrivania, scrivanie, f, support furniture
armchair, armchairs, poltrona, poltrone, f, support furniture
stool, stools, sgabello, sgabelli, m, support furniture
shelf, shelves, scaffale, scaffali, m, support furniture
door, doors, porta, porte, f, lid
window, windows, finestra, finestre, f, lid
car, cars, macchina, macchine, f, vehicle washable own
bicycle, bicycles, bicicletta, biciclette, f, vehicle washable own
boat, boats, barca, barche, f, vehicle own
train, trains, treno, treni, m, transport
bus, buses, autobus, autobus, m, transport
plane, planes, aereo, aerei, m, transport
ship, ships, nave, navi, f, transport
apple, apples, mela, mele, f, food fruit
orange, oranges, arancia, arance, f, food fruit
peach, peaches, pesca, pesche, f, food fruit
lemon, lemons, limone, limoni, m, food fruit
strawberry, strawberries, fragola, fragole, f, food fruit
pineapple, pineapples, ananas, ananas, m, food fruit
egg, eggs, uovo, uova, mf, food cook
potato, potatoes, patata, patate, f, food cook
tomato, tomatoes, pomodoro, pomodori, m, food cook
mushroom, mushrooms, fungo, funghi, m, food cook
onion, onions, cipolla, cipolle, f, food cook
sandwich, sandwiches, panino, panini, m, food
pizza, pizzas, pizza, pizze, f, food
cake, cakes, torta, torte, f, food
biscuit, biscuits, biscotto, biscotti, m, food
ice cream, ice creams, gelato, gelati, m, food
yogurt, yogurts, yogurt, yogurt, m, food
bread, -, pane, -, m, food
cheese, -, formaggio, -, m, food
meat, -, carne, -, f, food
water, -, acqua, -, f, drink
milk, -, latte, -, m, drink
wine, -, vino, -, m, drink
coffee, -, caffè, -, m, drink
tea, -, tè, -, m, drink
man, men, uomo, uomini, m, person
woman, women, donna, donne, f, person
boy, boys, ragazzo, ragazzi, m, person
girl, girls, ragazza, ragazze, f, person
child, children, bambino, bambini, m, person
actor, actors, attore, attori, m, person
actress, actresses, attrice, attrici, f, person
student, students, studente, studenti, m, person
professor, professors, professore, professori, m, person
waiter, waiters, cameriere, camerieri, m, person
doctor, doctors, medico, medici, m, person
lawyer, lawyers, avvocato, avvocati, m, person
psychologist, psychologists, psicologo, psicologi, m, person
dentist, dentists, dentista, dentisti, m, person
artist, artists, artista, artisti, m, person
king, kings, re, re, m, person
queen, queens, regina, regine, f, person
gnome, gnomes, gnomo, gnomi, m, person
father, -, padre, -, m, kin
mother, -, madre, -, f, kin
husband, -, marito, -, m, kin spouse
wife, -, moglie, -, f, kin spouse
grandfather, -, nonno, -, m, kin
grandmother, -, nonna, -, f, kin
brother, brothers, fratello, fratelli, m, kin
sister, sisters, sorella, sorelle, f, kin
son, sons, figlio, figli, m, kin
daughter, daughters, figlia, figlie, f, kin
uncle, uncles, zio, zii, m, kin
aunt, aunts, zia, zie, f, kin
cat, cats, gatto, gatti, m, animal pet
dog, dogs, cane, cani, m, animal pet
horse, horses, cavallo, cavalli, m, animal pet
cow, cows, mucca, mucche, f, animal pet
bird, birds, uccello, uccelli, m, animal pet
duck, ducks, anatra, anatre, f, animal
tiger, tigers, tigre, tigri, f, animal
lion, lions, leone, leoni, m, animal
wolf, wolves, lupo, lupi, m, animal
bee, bees, ape, api, f, animal
zebra, zebras, zebra, zebre, f, animal
squirrel, squirrels, scoiattolo, scoiattoli, m, animal
monkey, monkeys, scimmia, scimmie, f, animal
elephant, elephants, elefante, elefanti, m, animal
eagle, eagles, aquila, aquile, f, animal
spider, spiders, ragno, ragni, m, animal
museum, museums, museo, musei, m, place shop visit goto
park, parks, parco, parchi, m, place outside goto
hotel, hotels, albergo, alberghi, m, place
restaurant, restaurants, ristorante, ristoranti, m, place shop goto
theatre, theatres, teatro, teatri, m, place visit goto
cinema, cinemas, cinema, cinema, m, place goto
stadium, stadiums, stadio, stadi, m, place visit goto
zoo, zoos, zoo, zoo, m, place shop visit goto
station, stations, stazione, stazioni, f, place goto
airport, airports, aeroporto, aeroporti, m, place goto
hospital, hospitals, ospedale, ospedali, m, place goto
market, markets, mercato, mercati, m, place shop goto
pharmacy, pharmacies, farmacia, farmacie, f, place shop
bank, banks, banca, banche, f, place shop
library, libraries, biblioteca, biblioteche, f, place shop
shop, shops, negozio, negozi, m, place shop
school, schools, scuola, scuole, f, place
church, churches, chiesa, chiese, f, place visit
castle, castles, castello, castelli, m, place visit outside goto
tower, towers, torre, torri, f, place visit
bridge, bridges, ponte, ponti, m, place long
square, squares, piazza, piazze, f, place
island, islands, isola, isole, f, area visit
city, cities, città, città, f, area visit
forest, forests, foresta, foreste, f, place outside
garden, gardens, giardino, giardini, m, place outside room own
house, houses, casa, case, f, place room own
kitchen, kitchens, cucina, cucine, f, area room own
room, rooms, stanza, stanze, f, room own
office, offices, ufficio, uffici, m, area room own
concert, concerts, concerto, concerti, m, event
party, parties, festa, feste, f, event
exam, exams, esame, esami, m, event
match, matches, partita, partite, f, event
meeting, meetings, riunione, riunioni, f, event
course, courses, corso, corsi, m, event
trip, trips, viaggio, viaggi, m, event
lesson, lessons, lezione, lezioni, f, event
film, films, film, film, m, event
show, shows, spettacolo, spettacoli, m, event
conference, conferences, conferenza, conferenze, f, event
exhibition, exhibitions, mostra, mostre, f, event
race, races, gara, gare, f, event
"""

# English, its comparative ("-": none is used), Italian masculine singular, kinds of noun it describes;
# kind "attributive": also stands beside a noun ("a red book").
ADJECTIVE_TABLE = """
red, -, rosso, item wear vehicle attributive
yellow, -, giallo, item wear vehicle attributive
black, -, nero, item wear vehicle pet attributive
white, -, bianco, item wear vehicle pet attributive
grey, -, grigio, item wear vehicle pet attributive
green, -, verde, item wear vehicle attributive
blue, -, blu, item wear vehicle attributive
pink, -, rosa, item wear vehicle attributive
purple, -, viola, item wear vehicle attributive
new, newer, nuovo, item paper wear vehicle place furniture attributive
old, older, vecchio, item paper wear vehicle place furniture attributive
big, bigger, grande, animal place area container furniture fruit
small, smaller, piccolo, animal place area container furniture fruit
long, longer, lungo, long event
beautiful, more beautiful, bello, wear place area paper
broken, -, rotto, fragile machine attributive
clean, cleaner, pulito, washable room attributive
dirty, dirtier, sporco, washable room attributive
empty, -, vuoto, container attributive
full, -, pieno, container
open, -, aperto, lid shop
closed, -, chiuso, lid shop
heavy, heavier, pesante, container furniture attributive
expensive, more expensive, costoso, item wear vehicle food attributive
cheap, cheaper, economico, item wear vehicle attributive
modern, more modern, moderno, furniture place area attributive
comfortable, more comfortable, comodo, furniture wear attributive
elegant, more elegant, elegante, wear person kin attributive
useful, more useful, utile, item
interesting, more interesting, interessante, print event visit attributive
important, more important, importante, text event
fresh, fresher, fresco, fruit cook
good, -, buono, food drink
cold, colder, freddo, drink
hot, hotter, caldo, drink
tired, more tired, stanco, person kin animal
happy, happier, felice, person kin
sad, sadder, triste, person kin
young, younger, giovane, person kin animal
tall, taller, alto, person kin
rich, richer, ricco, person kin
poor, poorer, povero, person kin
ill, -, malato, person kin animal
famous, more famous, famoso, person kin visit
strong, stronger, forte, person kin animal
kind, kinder, gentile, person kin
nice, nicer, simpatico, person kin
intelligent, more intelligent, intelligente, person kin animal
Italian, -, italiano, person wear vehicle attributive
French, -, francese, person wear vehicle attributive
English, -, inglese, person wear vehicle attributive
Spanish, -, spagnolo, person wear vehicle attributive
German, -, tedesco, person wear vehicle attributive
dangerous, more dangerous, pericoloso, animal
slow, slower, lento, animal transport
fast, faster, veloce, animal transport
"""

# English, Italian infinitive (and what follows it), kinds of noun it takes as its object.
TRANSITIVE_TABLE = """
eat, mangiare, food
drink, bere, drink
read, leggere, print
write, scrivere, text
send, spedire, print
buy, comprare, item wear food vehicle
sell, vendere, item wear food vehicle
want, volere, item wear food vehicle
have, avere, item wear vehicle pet
prefer, preferire, wear food drink
choose, scegliere, wear item food
look for, cercare, item paper wear person animal
find, trovare, item paper wear
lose, perdere, item paper
take, prendere, item food
bring, portare, wear food
hide, nascondere, item paper
see, vedere, item paper animal person place area
draw, disegnare, animal place
paint, dipingere, animal place
photograph, fotografare, animal person place
wash, lavare, washable
clean, pulire, room
open, aprire, lid
close, chiudere, lid
break, rompere, fragile
cook, cucinare, cook
call, chiamare, person
help, aiutare, person
wait for, aspettare, person transport
understand, capire, person
know, conoscere, person
follow, seguire, person animal
hear, sentire, person animal
visit, visitare, visit
"""
INTRANSITIVE_TABLE = """
sleep, dormire
work, lavorare
run, correre
swim, nuotare
sing, cantare
dance, ballare
travel, viaggiare
pay, pagare
cook, cucinare
play, giocare
"""
ROUTINE_TABLE = """
wake up, svegliarsi
get up, alzarsi
have lunch, pranzare
have dinner, cenare
go to bed, andare a letto
go out, uscire
leave, partire
arrive, arrivare
start work, cominciare a lavorare
finish work, finire di lavorare
"""

WOMEN, MEN = ("Maria", "Anna", "Giulia"), ("Paolo", "Marco", "Luca")
ADVERBS = (("here", "qui"), ("today", "oggi"), ("every day", "ogni giorno"), ("together", "insieme"))
WEEKDAYS = (
    ("Monday", "lunedì"),
    ("Tuesday", "martedì"),
    ("Wednesday", "mercoledì"),
    ("Thursday", "giovedì"),
    ("Friday", "venerdì"),
    ("Saturday", "sabato"),
    ("Sunday", "domenica"),
)
MONTHS = (
    ("January", "gennaio"),
    ("February", "febbraio"),
    ("March", "marzo"),
    ("April", "aprile"),
    ("May", "maggio"),
    ("June", "giugno"),
    ("July", "luglio"),
    ("August", "agosto"),
    ("September", "settembre"),
    ("October", "ottobre"),
    ("November", "novembre"),
    ("December", "dicembre"),
)

# --- Words ----------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD, FIRST_PLURAL, THIRD_PLURAL = range(5)  # the persons in use, in conjugation order


@dataclass(frozen=True)
class Noun:
    en: str
    en_plural: str  # "-" for a mass noun, as in Italian
    it: str
    it_plural: str
    genders: str  # "m" or "f"; "mf" for a masculine that is feminine in the plural
    kinds: frozenset[str]

    @property
    def numbers(self) -> tuple[bool, ...]:
        """The grammatical numbers it has: False for the singular, True for the plural."""
        return (False,) if self.it_plural == "-" else (False, True)

    def gender(self, plural: bool) -> str:
        return self.genders[-1] if plural else self.genders[0]


@dataclass(frozen=True)
class Adjective:
    en: str
    en_comparative: str
    it: str  # masculine singular
    kinds: frozenset[str]


@dataclass(frozen=True)
class Verb:
    en: str  # base form, with its particle: "look for"
    it: str  # infinitive, with what follows it: "andare a letto"
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Phrase:
    """A subject or an object in both languages, with what has to agree with it."""

    en: str
    it: str  # "" for a pronoun, which Italian drops
    person: int = THIRD
    gender: str = "m"

    @property
    def plural(self) -> bool:
        return self.person >= FIRST_PLURAL


def _rows(table: str) -> list[list[str]]:
    return [line.split(", ") for line in table.strip().splitlines()]


NOUNS = [
    Noun(en, en_plural, it, it_plural, genders, frozenset(kinds.split()))
    for en, en_plural, it, it_plural, genders, kinds in _rows(NOUN_TABLE)
]
ADJECTIVES = [
    Adjective(en, en_comparative, it, frozenset(kinds.split()))
    for en, en_comparative, it, kinds in _rows(ADJECTIVE_TABLE)
]
TRANSITIVES = [Verb(en, it, frozenset(kinds.split())) for en, it, kinds in _rows(TRANSITIVE_TABLE)]
INTRANSITIVES = [Verb(en, it) for en, it in _rows(INTRANSITIVE_TABLE)]
ROUTINES = [Verb(en, it) for en, it in _rows(ROUTINE_TABLE)]
VERB = {verb.en: verb for verb in TRANSITIVES + ROUTINES}

PRONOUNS = [
    Phrase("I", "", FIRST),
    Phrase("you", "", SECOND),
    Phrase("we", "", FIRST_PLURAL),
    Phrase("they", "", THIRD_PLURAL),
]
NAMES = [Phrase(name, name, gender=gender) for names, gender in ((WOMEN, "f"), (MEN, "m")) for name in names]


def nouns_of(*kinds: str) -> list[Noun]:
    return [noun for noun in NOUNS if noun.kinds & set(kinds)]


# --- Numbers --------------------------------------------------------------------------------------------

# Zero to nine, ten to nineteen, and the tens from twenty, in either language.
NUMBER_TABLE = """
zero one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety
zero uno due tre quattro cinque sei sette otto nove
dieci undici dodici tredici quattordici quindici sedici diciassette diciotto diciannove
venti trenta quaranta cinquanta sessanta settanta ottanta novanta
"""
_ENGLISH_ONES, _ENGLISH_TEENS, ENGLISH_TENS, _ITALIAN_ONES, _ITALIAN_TEENS, ITALIAN_TENS = (
    line.split() for line in NUMBER_TABLE.strip().splitlines()
)
ENGLISH_SMALL, ITALIAN_SMALL = _ENGLISH_ONES + _ENGLISH_TEENS, _ITALIAN_ONES + _ITALIAN_TEENS


def english_number(n: int) -> str:
    """British English words for 0 <= n <= 9999.

    >>> [english_number(n) for n in (0, 21, 100, 345)]
    ['zero', 'twenty-one', 'one hundred', 'three hundred and forty-five']
    >>> [english_number(n) for n in (1000, 1200, 2007)]
    ['one thousand', 'one thousand two hundred', 'two thousand and seven']
    """
    if n < 20:
        return ENGLISH_SMALL[n]
    if n < 100:
        return ENGLISH_TENS[n // 10 - 2] + (f"-{ENGLISH_SMALL[n % 10]}" if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    head, rest = f"{ENGLISH_SMALL[n // unit]} {name}", n % unit
    if not rest:
        return head
    return f"{head} {english_number(rest)}" if rest >= 100 else f"{head} and {english_number(rest)}"


def italian_number(n: int) -> str:
    """Italian words for 0 <= n <= 9999, written as one word.

    Tens lose their vowel before uno and otto, cento before otto and ottanta; a final tre takes an accent.

    >>> [italian_number(n) for n in (3, 21, 23, 28, 101, 103, 108, 180)]
    ['tre', 'ventuno', 'ventitré', 'ventotto', 'centouno', 'centotré', 'centotto', 'centottanta']
    >>> [italian_number(n) for n in (1000, 1003, 1988, 2000, 2033)]
    ['mille', 'milletré', 'millenovecentottantotto', 'duemila', 'duemilatrentatré']
    """
    word = _unaccented_italian_number(n)
    return word[:-1] + "é" if word.endswith("tre") and n != 3 else word


def _unaccented_italian_number(n: int) -> str:
    if n < 20:
        return ITALIAN_SMALL[n]
    if n < 100:
        tens, ones = ITALIAN_TENS[n // 10 - 2], n % 10
        return (tens[:-1] if ones in (1, 8) else tens) + (ITALIAN_SMALL[ones] if ones else "")
    unit, one, many = (100, "cento", "cento") if n < 1000 else (1000, "mille", "mila")
    head = one if n // unit == 1 else ITALIAN_SMALL[n // unit] + many
    rest = _unaccented_italian_number(n % unit) if n % unit else ""
    return (head[:-1] if unit == 100 and rest.startswith("o") else head) + rest


def english_year(year: int) -> str:
    """A year from 1100 to 2099 as it is read aloud.

    >>> [english_year(year) for year in (1984, 1905, 1800, 2016)]
    ['nineteen eighty-four', 'nineteen oh five', 'eighteen hundred', 'twenty sixteen']
    >>> english_year(2007)
    'two thousand and seven'
    """
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return english_number(year)
    if rest == 0:
        return f"{english_number(century)} hundred"
    return f"{english_number(century)} {'oh ' if rest < 10 else ''}{english_number(rest)}"


# --- Italian grammar ------------------------------------------------------------------------------------


def definite_article(word: str, gender: str, plural: bool) -> str:
    """il, lo, l', la, i, gli or le, with the space that follows it.

    >>> [definite_article(w, "m", False) + w for w in ("libro", "zaino", "specchio", "gnomo", "uomo")]
    ['il libro', 'lo zaino', 'lo specchio', 'lo gnomo', "l'uomo"]
    >>> [definite_article(w, "m", True) + w for w in ("libri", "psicologi", "yogurt", "alberghi")]
    ['i libri', 'gli psicologi', 'gli yogurt', 'gli alberghi']
    >>> [definite_article(w, "f", w == "api") + w for w in ("sciarpa", "isola", "api")]
    ['la sciarpa', "l'isola", 'le api']
    """
    if plural:
        heavy = starts_with_vowel(word) or starts_heavy(word)
        return "le " if gender == "f" else "gli " if heavy else "i "
    if starts_with_vowel(word):
        return "l'"
    return "la " if gender == "f" else "lo " if starts_heavy(word) else "il "


def indefinite_article(word: str, gender: str) -> str:
    """un, uno, una or un', with the space that follows it.

    >>> [indefinite_article(w, "m") + w for w in ("libro", "uomo", "scaffale", "yogurt")]
    ['un libro', 'un uomo', 'uno scaffale', 'uno yogurt']
    >>> [indefinite_article(w, "f") + w for w in ("sciarpa", "ape")]
    ['una sciarpa', "un'ape"]
    """
    if gender == "f":
        return "un'" if starts_with_vowel(word) else "una "
    return "uno " if starts_heavy(word) else "un "


def starts_with_vowel(word: str) -> bool:
    return word[0] in "aeiou"


def starts_heavy(word: str) -> bool:
    """Whether lo, uno and gli stand before it: z, y, s + consonant, gn, ps."""
    return word[0] in "zy" or word.startswith(("gn", "ps")) or (word[0] == "s" and not starts_with_vowel(word[1:]))


def demonstrative(near: bool, word: str, gender: str, plural: bool) -> str:
    """questo (near) or quello in its form before `word`, with the space that follows it.

    >>> [demonstrative(True, w, g, False) + w for w, g in (("libro", "m"), ("isola", "f"), ("scuola", "f"))]
    ['questo libro', "quest'isola", 'questa scuola']
    >>> [demonstrative(False, w, "m", False) + w for w in ("libro", "zaino", "uomo")]
    ['quel libro', 'quello zaino', "quell'uomo"]
    >>> [demonstrative(False, w, "m", True) + w for w in ("libri", "zaini")]
    ['quei libri', 'quegli zaini']
    """
    article = definite_article(word, gender, plural)
    if near:
        return "quest'" if article == "l'" else f"quest{agreement(gender, plural)} "
    return {"il ": "quel ", "i ": "quei ", "gli ": "quegli "}.get(article, f"quel{article}")


def agreement(gender: str, plural: bool) -> str:
    """The ending of a four-form adjective: o, a, i or e."""
    return {"m": "oi", "f": "ae"}[gender][plural]


def adjective_form(masculine: str, gender: str, plural: bool) -> str:
    """The form of an adjective that agrees in gender and number.

    >>> [adjective_form(a, "f", True) for a in ("rosso", "bianco", "grigio", "verde", "blu")]
    ['rosse', 'bianche', 'grigie', 'verdi', 'blu']
    >>> [adjective_form(a, "m", True) for a in ("vecchio", "lungo", "tedesco", "simpatico", "rosa", "felice")]
    ['vecchi', 'lunghi', 'tedeschi', 'simpatici', 'rosa', 'felici']
    """
    if masculine in ("blu", "rosa", "viola"):
        return masculine
    if masculine.endswith("e"):
        return masculine[:-1] + "i" if plural else masculine
    stem, ending = masculine[:-1], agreement(gender, plural)
    soft = ending == "i" and masculine.endswith("ico")  # simpatici, economici, but simpatiche
    if plural and stem[-1] in "cg" and not soft:
        stem += "h"
    return stem[:-1] + "i" if stem[-1] == "i" and ending == "i" else stem + ending


def contract(preposition: str, phrase: str) -> str:
    """A preposition before a phrase, joined with the article if the phrase begins with one; a is ad before a.

    >>> [contract("di", p) for p in ("il libro", "lo zio", "l'uomo", "la casa", "i re", "gli zii", "le uova")]
    ['del libro', 'dello zio', "dell'uomo", 'della casa', 'dei re', 'degli zii', 'delle uova']
    >>> contract("in", "l'armadio"), contract("su", "il letto"), contract("da", "la banca")
    ("nell'armadio", 'sul letto', 'dalla banca')
    >>> contract("di", "mio zio"), contract("a", "maggio"), contract("a", "aprile")
    ('di mio zio', 'a maggio', 'ad aprile')
    """
    stem = {"di": "de", "a": "a", "da": "da", "in": "ne", "su": "su"}.get(preposition)
    end = phrase.index("'") + 1 if phrase.startswith("l'") else phrase.find(" ") + 1
    article, rest = phrase[:end], phrase[end:]
    ending = {
        "il ": "l ",
        "lo ": "llo ",
        "l'": "ll'",
        "la ": "lla ",
        "i ": "i ",
        "gli ": "gli ",
        "le ": "lle ",
    }
    if stem and article in ending:
        return stem + ending[article] + rest
    return f"ad {phrase}" if preposition == "a" and phrase[0] in "aA" else f"{preposition} {phrase}"


IRREGULAR_PRESENT = {
    "essere": "sono sei è siamo sono",
    "avere": "ho hai ha abbiamo hanno",
    "volere": "voglio vuoi vuole vogliamo vogliono",
    "potere": "posso puoi può possiamo possono",
    "dovere": "devo devi deve dobbiamo devono",
    "andare": "vado vai va andiamo vanno",
    "venire": "vengo vieni viene veniamo vengono",
    "uscire": "esco esci esce usciamo escono",
    "bere": "bevo bevi beve beviamo bevono",
    "scegliere": "scelgo scegli sceglie scegliamo scelgono",
    "piacere": "piaccio piaci piace piacciamo piacciono",
}
PRESENT_ENDINGS = {"are": "o i a iamo ano", "ere": "o i e iamo ono", "ire": "o i e iamo ono"}
INSERTS_ISC = ("finire", "capire", "pulire", "preferire", "spedire")


def present(infinitive: str, person: int) -> str:
    """The present indicative, with its pronoun for a reflexive and with what follows the infinitive.

    >>> for verb in ("cercare", "mangiare", "aprire", "finire"):
    ...     print(*(present(verb, person) for person in range(5)))
    cerco cerchi cerca cerchiamo cercano
    mangio mangi mangia mangiamo mangiano
    apro apri apre apriamo aprono
    finisco finisci finisce finiamo finiscono
    >>> present("svegliarsi", FIRST), present("andare a letto", THIRD)
    ('mi sveglio', 'va a letto')
    """
    infinitive, _, tail = infinitive.partition(" ")
    pronoun = ""
    if infinitive.endswith("rsi"):
        pronoun, infinitive = ("mi ", "ti ", "si ", "ci ", "si ")[person], infinitive[:-2] + "e"
    if infinitive in IRREGULAR_PRESENT:
        form = IRREGULAR_PRESENT[infinitive].split()[person]
    else:
        stem, ending = infinitive[:-3], PRESENT_ENDINGS[infinitive[-3:]].split()[person]
        if infinitive in INSERTS_ISC and person != FIRST_PLURAL:
            stem += "isc"
        if infinitive.endswith("are") and ending[0] == "i":
            stem = stem + "h" if stem[-1] in "cg" else stem.removesuffix("i")
        form = stem + ending
    return pronoun + form + (f" {tail}" if tail else "")


# --- English grammar ------------------------------------------------------------------------------------


def a_or_an(phrase: str) -> str:
    """
    >>> [a_or_an(p) for p in ("book", "old book", "umbrella", "useful book")]
    ['a book', 'an old book', 'an umbrella', 'a useful book']
    """
    return f"an {phrase}" if phrase[0] in "aeiouAEIOU" and not phrase.startswith("use") else f"a {phrase}"


def english_present(base: str, person: int) -> str:
    """
    >>> [english_present(b, THIRD) for b in ("look for", "wash", "go out", "have lunch", "play")]
    ['looks for', 'washes', 'goes out', 'has lunch', 'plays']
    """
    if person != THIRD:
        return base
    verb, space, tail = base.partition(" ")
    if verb == "have":
        verb = "has"
    else:
        verb += "es" if verb.endswith(("s", "sh", "ch", "x", "o")) else "s"
    return verb + space + tail


# --- Phrases --------------------------------------------------------------------------------------------


def _noun_phrase(noun: Noun, plural: bool, en: str, it: str) -> Phrase:
    return Phrase(en, it, THIRD_PLURAL if plural else THIRD, noun.gender(plural))


def definite(noun: Noun, plural: bool = False, adjective: Adjective | None = None) -> Phrase:
    """the (red) book → il libro (rosso)"""
    en, it = _described(noun, plural, adjective)
    return _noun_phrase(noun, plural, f"the {en}", definite_article(it, noun.gender(plural), plural) + it)


def indefinite(noun: Noun, adjective: Adjective | None = None) -> Phrase:
    """a (red) book → un libro (rosso)"""
    en, it = _described(noun, False, adjective)
    return _noun_phrase(noun, False, a_or_an(en), indefinite_article(it, noun.gender(False)) + it)


def pointed(near: bool, noun: Noun, plural: bool) -> Phrase:
    """this, that, these or those: that book → quel libro"""
    en, it = _described(noun, plural, None)
    pointer = ("that", "those", "this", "these")[2 * near + plural]
    return _noun_phrase(noun, plural, f"{pointer} {en}", demonstrative(near, it, noun.gender(plural), plural) + it)


OWNERS = {  # English → Italian forms by (gender, number); loro does not change
    "my": {"m": ("mio", "miei"), "f": ("mia", "mie")},
    "your": {"m": ("tuo", "tuoi"), "f": ("tua", "tue")},
    "our": {"m": ("nostro", "nostri"), "f": ("nostra", "nostre")},
    "their": {"m": ("loro", "loro"), "f": ("loro", "loro")},
}


def owned(owner: str, noun: Noun, plural: bool = False) -> Phrase:
    """my house → la mia casa; one relative takes no article (mio fratello) except with loro."""
    en, it = _described(noun, plural, None)
    gender = noun.gender(plural)
    possessive = OWNERS[owner][gender][plural]
    bare = "kin" in noun.kinds and not plural and owner != "their"
    article = "" if bare else definite_article(possessive, gender, plural)
    return _noun_phrase(noun, plural, f"{owner} {en}", f"{article}{possessive} {it}")


def owned_by(owner: Phrase, noun: Noun, plural: bool = False) -> Phrase:
    """the boy's book → il libro del ragazzo"""
    en, it = _described(noun, plural, None)
    of_owner = contract("di", owner.it)
    article = definite_article(it, noun.gender(plural), plural)
    return _noun_phrase(noun, plural, f"{owner.en}'s {en}", f"{article}{it} {of_owner}")


def _described(noun: Noun, plural: bool, adjective: Adjective | None) -> Pair:
    en, it = (noun.en_plural, noun.it_plural) if plural else (noun.en, noun.it)
    if adjective is None:
        return en, it
    return f"{adjective.en} {en}", f"{it} {adjective_form(adjective.it, noun.gender(plural), plural)}"


def definites(*kinds: str) -> list[Phrase]:
    """Every noun of these kinds with its definite article, in both numbers."""
    return [definite(noun, plural) for noun in nouns_of(*kinds) for plural in noun.numbers]


def described(nouns: Iterable[Noun]) -> list[tuple[Noun, bool, Adjective]]:
    """Each noun in each of its numbers with each adjective that makes sense of it."""
    return [
        (noun, plural, adjective)
        for noun, adjective in product(nouns, ADJECTIVES)
        if noun.kinds & adjective.kinds
        for plural in noun.numbers
    ]


PEOPLE = definites("person")
SUBJECTS = PRONOUNS * 12 + NAMES * 4 + PEOPLE  # pronouns, names and nouns about as often

# --- Sentences ------------------------------------------------------------------------------------------

STATEMENT, NEGATION, QUESTION = "statement", "negation", "question"
MODES = (STATEMENT, STATEMENT, NEGATION, QUESTION)  # as often as each is drawn


def sentence(en: str, it: str, end: str = ".") -> Pair:
    return en[0].upper() + en[1:] + end, it[0].upper() + it[1:] + end


def words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def be(subject: Phrase, en: str, it: str, mode: str = STATEMENT) -> Pair:
    """The house is open → La casa è aperta, with a noun as the subject."""
    is_ = "are" if subject.plural else "is"
    verb = present("essere", subject.person)
    if mode == QUESTION:
        return sentence(f"{is_} {subject.en} {en}", f"{subject.it} {verb} {it}", "?")
    if mode == NEGATION:
        return sentence(f"{subject.en} {is_} not {en}", f"{subject.it} non {verb} {it}")
    return sentence(f"{subject.en} {is_} {en}", f"{subject.it} {verb} {it}")


def where_is(thing: Phrase) -> Pair:
    if thing.plural:
        return sentence(f"where are {thing.en}", f"dove sono {thing.it}", "?")
    return sentence(f"where is {thing.en}", f"dov'è {thing.it}", "?")


def do(subject: Phrase, verb: Verb, en: str, it: str, mode: str = STATEMENT) -> Pair | None:
    """The verb in the present, then the rest of the sentence; None for a question put to oneself."""
    if subject.person == FIRST and mode == QUESTION:
        return None
    does = english_present("do", subject.person)
    verb_it = present(verb.it, subject.person)
    if mode == QUESTION:
        return sentence(words(does, subject.en, verb.en, en), words(subject.it, verb_it, it), "?")
    if mode == NEGATION:
        return sentence(words(subject.en, does, "not", verb.en, en), words(subject.it, "non", verb_it, it))
    return sentence(words(subject.en, english_present(verb.en, subject.person), en), words(subject.it, verb_it, it))


# --- Choice of sentences --------------------------------------------------------------------------------


def _sha256(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _every(build: Callable[..., Pair | None], *axes: Sequence) -> list[Pair]:
    """`build` of every combination, without those it refuses with None."""
    return [pair for choice in product(*axes) if (pair := build(*choice))]


def _some(quota: int, build: Callable[..., Pair | None], *axes: Sequence) -> list[Pair]:
    """At most `quota` distinct sentences from combinations that SHA-256 spreads evenly over the product.

    The name of `build` seeds the choice: renaming it changes the corpus.
    """
    size = math.prod(map(len, axes))
    pairs: dict[Pair, None] = {}
    for draw in range(20 * quota):
        if len(pairs) == quota:
            break
        index, choice = _sha256(f"{build.__qualname__} {draw}") % size, []
        for axis in axes:
            index, position = divmod(index, len(axis))
            choice.append(axis[position])
        if pair := build(*choice):
            pairs[pair] = None
    return list(pairs)


def _numbers() -> Iterable[Pair]:
    def alone(n: int) -> Pair:
        return sentence(english_number(n), italian_number(n))

    def counted(subject: Phrase, verb: str, n: int, noun: Noun) -> Pair | None:
        return do(subject, VERB[verb], f"{n} {noun.en_plural}", f"{italian_number(n)} {noun.it_plural}")

    def sum_(operation: tuple[str, str], a: int, b: int) -> Pair | None:
        en, it = operation
        result = {"plus": a + b, "minus": a - b}[en]
        if result < 0:
            return None
        a_en, b_en, result_en = map(english_number, (a, b, result))
        a_it, b_it, result_it = map(italian_number, (a, b, result))
        return sentence(f"{a_en} {en} {b_en} is {result_en}", f"{a_it} {it} {b_it} fa {result_it}")

    def times(a: int, b: int) -> Pair:
        a_en, b_en, result_en = map(english_number, (a, b, a * b))
        a_it, b_it, result_it = map(italian_number, (a, b, a * b))
        return sentence(f"{a_en} times {b_en} is {result_en}", f"{a_it} per {b_it} fa {result_it}")

    people, things = PRONOUNS * 2 + NAMES, nouns_of("item", "wear")
    yield from _every(alone, range(1001))
    yield from _some(300, alone, range(1001, 10_000))
    yield from _some(900, counted, people, ("have", "buy", "see"), range(2, 100), things)
    yield from _some(400, counted, people, ("have", "buy", "see"), range(100, 1000), things)
    yield from _some(500, sum_, (("plus", "più"), ("minus", "meno")), range(1, 100), range(1, 100))
    yield from _every(times, range(2, 14), range(2, 14))


def calendar_day(day: int, month: int) -> Pair:
    """A day of the month; Italian counts the first and elides before otto and undici.

    >>> [calendar_day(day, 5) for day in (1, 2, 8)]
    [('1 May', 'il primo maggio'), ('2 May', 'il 2 maggio'), ('8 May', "l'8 maggio")]
    """
    month_en, month_it = MONTHS[month - 1]
    article = "l'" if day in (8, 11) else "il "
    return f"{day} {month_en}", f"{article}{'primo' if day == 1 else day} {month_it}"


def _dates() -> Iterable[Pair]:
    def full(frame: Pair, day: date) -> Pair:
        (frame_en, frame_it), (weekday_en, weekday_it) = frame, WEEKDAYS[day.weekday()]
        day_en, day_it = calendar_day(day.day, day.month)
        day_it = day_it.removeprefix("il ").removeprefix("l'")  # no article after the weekday
        return sentence(
            f"{frame_en} {weekday_en}, {day_en} {day.year}", f"{frame_it} {weekday_it} {day_it} {day.year}"
        )

    def on_day(event: Phrase, verb: Verb | None, day: date, mode: str) -> Pair | None:
        day_en, day_it = calendar_day(day.day, day.month)
        return happens(event, verb, f"on {day_en}", day_it, mode)

    def on_weekday(event: Phrase, verb: Verb | None, weekday: Pair, mode: str) -> Pair | None:
        return happens(event, verb, f"on {weekday[0]}", weekday[1], mode)

    def in_month(event: Phrase, verb: Verb | None, month: Pair, mode: str) -> Pair | None:
        return happens(event, verb, f"in {month[0]}", contract("a", month[1]), mode)

    def happens(event: Phrase, verb: Verb | None, en: str, it: str, mode: str) -> Pair | None:
        return do(event, verb, en, it, mode) if verb else be(event, en, it, mode)

    def on_weekdays(place: Phrase, adjective: Adjective, weekday: Pair, mode: str) -> Pair:
        article = definite_article(weekday[1], "f" if weekday[1] == "domenica" else "m", False)
        state = adjective_form(adjective.it, place.gender, place.plural)
        return be(place, f"{adjective.en} on {weekday[0]}s", f"{state} {article}{weekday[1]}", mode)

    def born_on(person: Phrase, day: date) -> Pair:
        day_en, day_it = calendar_day(day.day, day.month)
        born = adjective_form("nato", person.gender, False)
        return sentence(f"{person.en} was born on {day_en} {day.year}", f"{person.it} è {born} {day_it} {day.year}")

    def born_in(person: Phrase, year: int) -> Pair:
        born = adjective_form("nato", person.gender, False)
        return sentence(f"{person.en} was born in {year}", f"{person.it} è {born} nel {year}")

    def year_was(year: int) -> Pair:
        return sentence(f"it was {english_year(year)}", f"era il {italian_number(year)}")

    frames = (("today is", "oggi è"), ("tomorrow is", "domani è"), ("yesterday was", "ieri era"))
    days = [date(1950, 1, 1) + timedelta(n) for n in range(29_000)]  # to May 2029
    one_year = days[365:730]
    events = [definite(noun) for noun in nouns_of("event")]
    verbs = (None, Verb("start", "cominciare"), Verb("end", "finire"))
    closing = [adjective for adjective in ADJECTIVES if adjective.en in ("open", "closed")]
    yield from _some(650, full, frames, days)
    yield from _some(850, on_day, events, verbs, one_year, MODES)
    yield from _some(250, on_weekday, events, verbs, WEEKDAYS, MODES)
    yield from _some(250, in_month, events, verbs, MONTHS, MODES)
    yield from _some(250, on_weekdays, [definite(noun) for noun in nouns_of("shop")], closing, WEEKDAYS, MODES)
    yield from _some(450, born_on, NAMES, days[: 365 * 60])
    yield from _some(150, born_in, NAMES, range(1930, 2020))
    yield from _some(400, year_was, range(1500, 2030))


MINUTES = {  # minutes from the hour → (English, Italian)
    5: ("five", "cinque"),
    10: ("ten", "dieci"),
    15: ("a quarter", "un quarto"),
    20: ("twenty", "venti"),
    25: ("twenty-five", "venticinque"),
}


def clock_time(hour: int, offset: int) -> Pair:
    """A time by the named hour (1 to 12; 0 for midnight, 24 for noon) and the minutes from it, -25 to 30.

    >>> clock_time(1, 30), clock_time(3, -15)
    (('half past one', "l'una e mezza"), ('a quarter to three', 'le tre meno un quarto'))
    >>> clock_time(24, 0), clock_time(0, -10)
    (('noon', 'mezzogiorno'), ('ten to midnight', 'mezzanotte meno dieci'))
    """
    if hour in (0, 24):
        hour_en, hour_it = ("noon", "mezzogiorno") if hour else ("midnight", "mezzanotte")
        on_the_hour = hour_en
    else:
        hour_en, hour_it = english_number(hour), "l'una" if hour == 1 else f"le {italian_number(hour)}"
        on_the_hour = f"{hour_en} o'clock"
    if offset == 0:
        return on_the_hour, hour_it
    if offset == 30:
        return f"half past {hour_en}", f"{hour_it} e mezza"
    minutes_en, minutes_it = MINUTES[abs(offset)]
    if offset > 0:
        return f"{minutes_en} past {hour_en}", f"{hour_it} e {minutes_it}"
    return f"{minutes_en} to {hour_en}", f"{hour_it} meno {minutes_it}"


def _times() -> Iterable[Pair]:
    def now(time: Pair, part: Pair = ("", "")) -> Pair:
        verb = "sono" if time[1].startswith("le ") else "è"
        return sentence(words("it is", time[0], part[0]), words(verb, time[1], part[1]))

    def at(action: tuple[Phrase, Verb], time: Pair, mode: str) -> Pair | None:
        return do(*action, f"at {time[0]}", contract("a", time[1]), mode)

    def at_digital(action: tuple[Phrase, Verb], hour: int, minute: int) -> Pair | None:
        time_it = f"alle {italian_number(hour)}" + (f" e {italian_number(minute)}" if minute else "")
        return do(*action, f"at {hour}:{minute:02d}", time_it)

    def on_weekday_at(action: tuple[Phrase, Verb], weekday: Pair, time: Pair) -> Pair | None:
        return do(*action, f"on {weekday[0]} at {time[0]}", f"{weekday[1]} {contract('a', time[1])}")

    def open_from(place: Phrase, start: Pair, end: Pair) -> Pair | None:
        if start == end:
            return None
        state = adjective_form("aperto", place.gender, place.plural)
        hours = f"{contract('da', start[1])} {contract('a', end[1])}"
        return be(place, f"open from {start[0]} to {end[0]}", f"{state} {hours}")

    def what_time(action: tuple[Phrase, Verb]) -> Pair:
        subject, verb = action
        does, verb_it = english_present("do", subject.person), present(verb.it, subject.person)
        return sentence(f"what time {does} {subject.en} {verb.en}", words("a che ora", verb_it, subject.it), "?")

    def singular(*kinds: str) -> list[Phrase]:
        return [definite(noun) for noun in nouns_of(*kinds)]

    offsets = (-25, -20, -15, -10, -5, 0, 5, 10, 15, 20, 25, 30)
    hours = list(product(range(1, 13), offsets))
    times = [clock_time(*h) for h in hours + list(product((0, 24), offsets[:-1]))]
    parts = (
        (("in the morning", "del mattino"), range(5, 12)),
        (("in the afternoon", "del pomeriggio"), range(2, 6)),
        (("in the evening", "di sera"), range(7, 12)),
    )
    actions = [
        *product(PRONOUNS + NAMES, ROUTINES),
        *product(singular("transport"), (VERB["leave"], VERB["arrive"])),
        *product(singular("shop"), (Verb("open", "aprire"), Verb("close", "chiudere"))),
        *product(singular("event"), (Verb("start", "cominciare"), Verb("end", "finire"))),
    ]
    opening = [clock_time(hour, offset) for hour in range(1, 13) for offset in (0, 15, 30)] + [
        ("noon", "mezzogiorno")
    ]
    yield from _every(now, times)
    for part, part_hours in parts:
        yield from _every(now, [clock_time(*h) for h in product(part_hours, offsets)], [part])
    yield from _some(1000, at, actions, times, MODES)
    yield from _some(800, at_digital, actions, range(13, 24), range(0, 60))
    yield from _some(500, on_weekday_at, actions, WEEKDAYS, times)
    yield from _some(400, open_from, singular("shop"), opening, opening)
    yield from _every(what_time, actions)


def price(euros: int, cents: int = 0) -> Pair:
    """An amount in digits → in Italian words; euro does not change in the plural, centesimo does.

    >>> price(1), price(21), price(0, 1)
    (('1 euro', 'un euro'), ('21 euros', 'ventuno euro'), ('1 cent', 'un centesimo'))
    >>> price(2, 50)
    ('2 euros and 50 cents', 'due euro e cinquanta centesimi')
    """
    amounts = []
    if euros:
        amounts.append(("1 euro", "un euro") if euros == 1 else (f"{euros} euros", f"{italian_number(euros)} euro"))
    if cents == 1:
        amounts.append(("1 cent", "un centesimo"))
    elif cents:
        amounts.append((f"{cents} cents", f"{italian_number(cents)} centesimi"))
    return " and ".join(en for en, _ in amounts), " e ".join(it for _, it in amounts)


def spoken_price(euros: int, cents: int) -> Pair:
    """
    >>> spoken_price(2, 50), spoken_price(1, 20)
    (('two euros fifty', 'due euro e cinquanta'), ('one euro twenty', 'un euro e venti'))
    """
    euros_en, euros_it = (
        ("one euro", "un euro") if euros == 1 else (f"{english_number(euros)} euros", price(euros)[1])
    )
    return f"{euros_en} {english_number(cents)}", f"{euros_it} e {italian_number(cents)}"


def _prices() -> Iterable[Pair]:
    def costs(thing: Phrase, euros: int, cents: int, mode: str) -> Pair | None:
        return do(thing, Verb("cost", "costare"), *price(euros, cents), mode)

    def costs_spoken(thing: Phrase, euros: int, cents: int) -> Pair | None:
        return do(thing, Verb("cost", "costare"), *spoken_price(euros, cents))

    def only_costs(thing: Phrase, euros: int) -> Pair:
        euros_en, euros_it = price(euros)
        cost_en, cost_it = english_present("cost", thing.person), present("costare", thing.person)
        return sentence(f"{thing.en} only {cost_en} {euros_en}", f"{thing.it} {cost_it} solo {euros_it}")

    def pays(person: Phrase, euros: int, thing: Phrase, mode: str) -> Pair | None:
        euros_en, euros_it = price(euros)
        return do(person, Verb("pay", "pagare"), f"{euros_en} for {thing.en}", f"{euros_it} per {thing.it}", mode)

    def how_much(thing: Phrase) -> Pair:
        does = english_present("do", thing.person)
        cost_it = present("costare", thing.person)
        return sentence(f"how much {does} {thing.en} cost", f"quanto {cost_it} {thing.it}", "?")

    groceries, goods = definites("food", "drink"), definites("item", "wear")
    single = [indefinite(noun) for noun in nouns_of("food", "item", "wear") if True in noun.numbers]
    people = PRONOUNS * 3 + NAMES
    few, many, no_cents = range(1, 16), range(1, 100), (0,)
    yield from _some(300, costs, groceries, few, no_cents, MODES)
    yield from _some(550, costs, goods, many, no_cents, MODES)
    yield from _some(250, costs, goods, range(100, 400), no_cents, MODES[:1])
    yield from _some(200, costs, groceries, (0,), (1, *range(5, 100, 5)), MODES[:1])
    yield from _some(250, costs, groceries, few, (1, *range(5, 100, 5)), MODES[:1])
    yield from _some(350, costs, goods, many, (1, *range(5, 100, 5)), MODES[:1])
    yield from _some(250, costs_spoken, groceries, few, range(10, 100, 5))
    yield from _some(350, costs_spoken, goods, many, range(10, 100, 5))
    yield from _some(200, only_costs, goods, many)
    yield from _some(150, pays, people, few, groceries, MODES)
    yield from _some(250, pays, people, many, goods, MODES)
    yield from _every(how_much, groceries + goods + single)


def _adjectives() -> Iterable[Pair]:
    def complement(adjective: Adjective, thing: Phrase, degree: Pair = ("", "")) -> Pair:
        form = adjective_form(adjective.it, thing.gender, thing.plural)
        return words(degree[0], adjective.en), words(degree[1], form)

    def is_(description: tuple[Noun, bool, Adjective], degree: Pair, mode: str) -> Pair | None:
        noun, plural, adjective = description
        if degree[0] and adjective.en_comparative == "-":
            return None
        thing = definite(noun, plural)
        return be(thing, *complement(adjective, thing, degree), mode)

    def pointed_is(description: tuple[Noun, bool, Adjective], near: bool, mode: str) -> Pair:
        noun, plural, adjective = description
        thing = pointed(near, noun, plural)
        return be(thing, *complement(adjective, thing), mode)

    def compared(description: tuple[Noun, bool, Adjective], other: Noun, mode: str) -> Pair | None:
        noun, plural, adjective = description
        if noun == other or not noun.kinds & adjective.kinds & other.kinds or plural not in other.numbers:
            return None
        if adjective.en_comparative == "-":
            return None
        thing, than = definite(noun, plural), definite(other, plural)
        form = adjective_form(adjective.it, thing.gender, plural)
        en, it = f"{adjective.en_comparative} than {than.en}", f"più {form} {contract('di', than.it)}"
        return be(thing, en, it, mode)

    def acts_on(
        subject: Phrase, verb: str, description: tuple[Noun, bool, Adjective], article: str, mode: str
    ) -> Pair | None:
        noun, plural, adjective = description
        if article == "a" and plural:
            return None
        thing = indefinite(noun, adjective) if article == "a" else definite(noun, plural, adjective)
        return do(subject, VERB[verb], thing.en, thing.it, mode)

    descriptions = described(noun for noun in NOUNS if "kin" not in noun.kinds)
    attributive = [d for d in described(nouns_of("item", "wear", "vehicle")) if "attributive" in d[2].kinds]
    degrees = (("", ""), ("", ""), ("very", "molto"), ("too", "troppo"))
    verbs = ("buy", "want", "have", "look for", "find")
    yield from _some(1250, is_, descriptions, degrees, MODES)
    yield from _some(700, compared, descriptions, NOUNS, MODES)
    yield from _some(650, pointed_is, descriptions, (False, True), MODES)
    yield from _some(700, acts_on, PRONOUNS * 3 + NAMES, verbs, attributive, ("a", "the"), MODES)


def _verbs() -> Iterable[Pair]:
    # The book, the books, a book; a mass noun only as the bread.
    objects = {
        verb: definites(*verb.kinds) + [indefinite(n) for n in nouns_of(*verb.kinds) if True in n.numbers]
        for verb in TRANSITIVES
    }

    def object_of(verb: Verb, choice: int) -> Phrase:
        return objects[verb][choice % len(objects[verb])]

    def acts(subject: Phrase, verb: Verb, choice: int, mode: str) -> Pair | None:
        thing = object_of(verb, choice)
        return None if thing.it == subject.it else do(subject, verb, thing.en, thing.it, mode)

    def modal(subject: Phrase, modal_verb: Pair, verb: Verb, choice: int, mode: str) -> Pair | None:
        (modal_en, modal_it), thing = modal_verb, object_of(verb, choice)
        if thing.it == subject.it or (modal_en == "must" and mode == QUESTION):
            return None
        rest_en, rest_it = f"{verb.en} {thing.en}", f"{verb.it} {thing.it}"
        if modal_en == "want":
            return do(subject, VERB["want"], f"to {rest_en}", rest_it, mode)
        finite = present(modal_it, subject.person)
        if mode == QUESTION:
            return sentence(f"{modal_en} {subject.en} {rest_en}", words(subject.it, finite, rest_it), "?")
        if mode == NEGATION:
            not_en = {"can": "cannot", "must": "must not"}[modal_en]
            return sentence(f"{subject.en} {not_en} {rest_en}", words(subject.it, "non", finite, rest_it))
        return sentence(f"{subject.en} {modal_en} {rest_en}", words(subject.it, finite, rest_it))

    def frequent(subject: Phrase, adverb: Pair, verb: Verb, choice: int) -> Pair | None:
        (adverb_en, adverb_it), thing = adverb, object_of(verb, choice)
        if thing.it == subject.it:
            return None
        en = f"{subject.en} {adverb_en} {english_present(verb.en, subject.person)} {thing.en}"
        negation = "non" if adverb_en == "never" else ""
        return sentence(en, words(subject.it, negation, present(verb.it, subject.person), adverb_it, thing.it))

    def likes(subject: Phrase, thing: Phrase, mode: str) -> Pair | None:
        if subject.person == FIRST and mode == QUESTION:
            return None
        does = english_present("do", subject.person)
        clitic = {FIRST: "mi", SECOND: "ti", FIRST_PLURAL: "ci"}.get(subject.person, "")
        dative = "" if clitic else contract("a", subject.it or "loro")
        negation = "non" if mode == NEGATION else ""
        it = words(dative, negation, clitic, present("piacere", thing.person), thing.it)
        if mode == QUESTION:
            return sentence(f"{does} {subject.en} like {thing.en}", it, "?")
        like = english_present("like", subject.person) if mode == STATEMENT else f"{does} not like"
        return sentence(f"{subject.en} {like} {thing.en}", it)

    def acts_how(subject: Phrase, verb: Verb, adverb: Pair, mode: str) -> Pair | None:
        if adverb[0] == "together" and not subject.plural:
            return None
        return do(subject, verb, *adverb, mode)

    choices = range(1000)
    infinitives = [verb for verb in TRANSITIVES if verb.en not in ("want", "have", "prefer", "lose")]
    modals = (("can", "potere"), ("must", "dovere"), ("want", "volere"))
    frequencies = (("always", "sempre"), ("often", "spesso"), ("never", "mai"))
    liked = definites("item", "wear", "food", "drink", "place", "vehicle")
    yield from _some(1500, acts, SUBJECTS, TRANSITIVES, choices, MODES)
    yield from _some(600, modal, SUBJECTS, modals, infinitives, choices, MODES)
    yield from _some(500, frequent, SUBJECTS, frequencies, infinitives, choices)
    yield from _some(450, likes, SUBJECTS, liked, MODES)
    yield from _some(250, acts_how, SUBJECTS, INTRANSITIVES, ADVERBS, MODES)


PREPOSITIONS = {  # English → (Italian adverb, Italian preposition)
    "in": ("", "in"),
    "on": ("", "su"),
    "under": ("sotto", ""),
    "behind": ("dietro", ""),
    "near": ("vicino", "a"),
    "next to": ("accanto", "a"),
    "in front of": ("davanti", "a"),
}


def located(preposition: str, place: Phrase) -> Pair:
    """
    >>> located("on", Phrase("the desk", "la scrivania")), located("near", Phrase("the bank", "la banca"))
    (('on the desk', 'sulla scrivania'), ('near the bank', 'vicino alla banca'))
    >>> located("under", Phrase("the stool", "lo sgabello"))
    ('under the stool', 'sotto lo sgabello')
    """
    adverb, joined = PREPOSITIONS[preposition]
    return f"{preposition} {place.en}", words(adverb, contract(joined, place.it) if joined else place.it)


def _places() -> Iterable[Pair]:
    def is_at(noun_place: tuple[Noun, Pair], plural: bool, mode: str) -> Pair:
        noun, place = noun_place
        return be(definite(noun, plural), *place, mode)

    def are_at_many(noun_place: tuple[Noun, Pair], mode: str) -> Pair:
        noun, place = noun_place
        return be(definite(noun, True), *place, mode)

    def exists(noun_place: tuple[Noun, Pair], n: int, mode: str) -> Pair | None:
        (noun, (place_en, place_it)) = noun_place
        if mode == NEGATION:
            return None
        if n == 1:
            thing, are, it = indefinite(noun), "is", "c'è"
            thing_en, thing_it = thing.en, thing.it
        else:
            thing_en, thing_it = (
                f"{english_number(n)} {noun.en_plural}",
                f"{italian_number(n)} {noun.it_plural}",
            )
            are, it = "are", "ci sono"
        if mode == QUESTION:
            return sentence(f"{are} there {thing_en} {place_en}", f"{it} {thing_it} {place_it}", "?")
        return sentence(f"there {are} {thing_en} {place_en}", f"{it} {thing_it} {place_it}")

    def moves(subject: Phrase, verb: tuple[Verb, str, str], place: Phrase, mode: str) -> Pair | None:
        action, preposition_en, preposition_it = verb
        return do(subject, action, f"{preposition_en} {place.en}", contract(preposition_it, place.it), mode)

    def acts_at(subject: Phrase, verb: Verb, place: Pair, mode: str) -> Pair | None:
        return do(subject, verb, *place, mode)

    def spots(prepositions: Sequence[str], *kinds: str, plural: bool = False) -> list[tuple[Noun, Pair]]:
        return [(noun, located(p, definite(noun, plural))) for p, noun in product(prepositions, nouns_of(*kinds))]

    beside = ("behind", "near", "next to", "in front of")
    open_air = spots(("in",), "outside") + spots(beside, "place")
    indoors = spots(("under", *beside), "support")
    surfaces, insides = spots(("on",), "support"), spots(("in",), "container")
    many_spots = spots(("on",), "support", plural=True) + spots(("in",), "container", plural=True)
    small = [noun for noun in nouns_of("item", "paper", "wear") if "container" not in noun.kinds]

    def placed(nouns: list[Noun], places: list[tuple[Noun, Pair]]) -> list[tuple[Noun, Pair]]:
        return [(noun, place) for noun, (landmark, place) in product(nouns, places) if noun != landmark]

    things = placed(small, surfaces + insides + indoors)
    beings = placed(nouns_of("person", "pet"), open_air)
    pets = placed([noun for noun in nouns_of("pet") if noun.en in ("cat", "dog")], indoors)
    buildings = placed(
        nouns_of("shop") + [noun for noun in NOUNS if noun.en in ("hotel", "school", "church")],
        spots(beside, "place"),
    )
    both = (False, True)
    yield from _some(700, is_at, things, both, MODES)
    yield from _some(400, is_at, beings + 10 * pets, both, MODES)
    yield from _some(250, is_at, buildings, (False,), MODES)
    yield from _some(250, are_at_many, placed(small, many_spots), MODES)
    yield from _some(700, exists, things + beings + buildings, (1, 1, 1, *range(2, 11)), MODES)
    going = ((Verb("go", "andare"), "to", "a"), (Verb("come", "venire"), "from", "da"))
    yield from _some(500, moves, SUBJECTS, going, [definite(noun) for noun in nouns_of("goto")], MODES)
    staying = (Verb("sleep", "dormire"), Verb("wait", "aspettare"), Verb("work", "lavorare"))
    yield from _some(350, acts_at, SUBJECTS, staying, [place for _, place in open_air], MODES)
    yield from _every(where_is, definites("item", "place", "wear"))


def _possessives() -> Iterable[Pair]:
    def is_(owner: str, description: tuple[Noun, bool, Adjective], mode: str) -> Pair | None:
        noun, plural, adjective = description
        return describe(owned(owner, noun, plural), adjective, mode) if may_own(owner, noun) else None

    def of_is(owner: Phrase, description: tuple[Noun, bool, Adjective], mode: str) -> Pair:
        noun, plural, adjective = description
        return describe(owned_by(owner, noun, plural), adjective, mode)

    def describe(thing: Phrase, adjective: Adjective, mode: str) -> Pair:
        return be(thing, adjective.en, adjective_form(adjective.it, thing.gender, thing.plural), mode)

    def this_is(thing: Phrase, mode: str) -> Pair:
        this = Phrase(
            "these" if thing.plural else "this", f"quest{agreement(thing.gender, thing.plural)}", thing.person
        )
        return be(this, thing.en, thing.it, mode)

    def acts(subject: Phrase, verb: Verb, thing: Phrase, mode: str) -> Pair | None:
        return do(subject, verb, thing.en, thing.it, mode)

    def may_own(owner: str, noun: Noun) -> bool:
        return not (owner in ("our", "their") and "spouse" in noun.kinds)

    def all_owned(*kinds: str) -> list[Phrase]:
        return [
            owned(owner, noun, plural)
            for owner, noun in product(OWNERS, nouns_of(*kinds))
            if may_own(owner, noun)
            for plural in noun.numbers
        ]

    relatives, belongings = described(nouns_of("kin")), described(nouns_of("own", "pet"))
    one_relative = [thing for thing in all_owned("kin") if not thing.plural]
    one_person = [person for person in PEOPLE if not person.plural]
    handled = [VERB[en] for en in ("look for", "find", "lose", "take", "bring", "hide", "sell", "want")]
    met = [VERB[en] for en in ("call", "help", "wait for", "understand", "hear", "follow", "see")]
    subjects = PRONOUNS * 4 + NAMES
    yield from _some(600, is_, tuple(OWNERS), belongings, MODES)
    yield from _some(350, is_, tuple(OWNERS), relatives, MODES)
    yield from _some(400, of_is, NAMES * 3 + one_person, belongings, MODES)
    yield from _some(400, of_is, one_relative, belongings, MODES)
    yield from _some(300, this_is, all_owned("kin") * 2 + all_owned("own", "pet"), MODES)
    yield from _some(250, where_is, all_owned("kin") * 2 + all_owned("own", "pet"))
    yield from _some(500, acts, subjects, handled, all_owned("item", "wear"), MODES)
    yield from _some(450, acts, subjects, met, all_owned("kin"), MODES)


# --- The corpus -----------------------------------------------------------------------------------------

CATEGORIES = {
    "numbers": _numbers,
    "dates": _dates,
    "times": _times,
    "prices": _prices,
    "adjectives": _adjectives,
    "verbs": _verbs,
    "places": _places,
    "possessives": _possessives,
}


@cache
def pairs_by_category() -> dict[str, tuple[Pair, ...]]:
    """The corpus by category; no English and no Italian sentence occurs twice in the whole of it."""
    seen_en: set[str] = set()
    seen_it: set[str] = set()
    corpus = {}
    for category, generate in CATEGORIES.items():
        kept = []
        for en, it in generate():
            if en not in seen_en and it not in seen_it:
                kept.append((en, it))
                seen_en.add(en)
                seen_it.add(it)
        corpus[category] = tuple(kept)
    return corpus


def phrasebook_pairs() -> list[Pair]:
    """All pairs (English, Italian), about 26,000, always the same and in the same order."""
    return [pair for pairs in pairs_by_category().values() for pair in pairs]


def phrasebook_splits(n_valid: int = 500, n_test: int = 500) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Training, validation and test pairs, disjoint in both languages.

    Each category gives its share of the `n_valid` and `n_test` pairs: those whose English has the lowest
    SHA-256. The test pairs do not depend on `n_valid`.

    Raises:
        DataError: if a number is negative or both together take more than half of the corpus.
    """
    corpus = pairs_by_category()
    total = sum(map(len, corpus.values()))
    if min(n_valid, n_test) < 0 or n_valid + n_test > total // 2:
        raise DataError(
            f"phrasebook: cannot take {n_valid} validation and {n_test} test pairs from {total}; "
            f"ask for 0 or more of each and at most {total // 2} together"
        )
    train, valid, test = [], [], []
    for pairs, valid_share, test_share in zip(
        corpus.values(), _shares(n_valid, corpus), _shares(n_test, corpus), strict=True
    ):
        # Not the hash that chose the sentences, so that every pattern gives its part.
        ranked = sorted(pairs, key=lambda pair: _sha256(f"split {pair[0]}"))
        test += ranked[:test_share]
        valid += ranked[test_share : test_share + valid_share]
        train += ranked[test_share + valid_share :]
    return train, valid, test


def _shares(n: int, corpus: dict[str, tuple[Pair, ...]]) -> list[int]:
    """`n` divided among the categories by size, exact in sum."""
    total = sum(map(len, corpus.values()))
    ends, count = [0], 0
    for pairs in corpus.values():
        count += len(pairs)
        ends.append(n * count // total)
    return [end - start for start, end in pairwise(ends)]
