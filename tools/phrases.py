"""Phrasings of the demo data, for training and held out.

Held-out phrasings form new sentences from words of the training set, so that they test reading, not vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pool:
    """Phrasings of one meaning; none is in both sets."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        assert not set(self.training) & set(self.held_out), "a phrasing is in both sets"


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


PROBLEMS: Final = {
    "billing": Pool(
        _lines("""
            I was charged {amount} twice for my {product}.
            The invoice for order {number} shows the wrong amount.
            You charged my credit card {amount} but the price was lower.
            My refund of {amount} has not arrived on my bank account.
            Please send me an invoice for the {product}.
            The discount code was not applied to my payment.
            My payment for order {number} was declined.
            I cancelled the subscription and was still billed {amount}.
            There is a charge of {amount} on my card that I do not know.
            The tax on invoice {number} is wrong.
            How can I get a refund for the {product}?
            I paid {amount} for the {product} and the bill says something else.
            Why did the price of my subscription go up?
            The receipt for my payment is missing.
            Can I pay the invoice in two parts?
            I need a copy of the receipt for order {number}.
            Our company was billed for {days} licences instead of one.
            The bank says the payment of {amount} went out on {day}, you say it did not.
            I want my money back for the {product}.
            I returned the {product} and wait for the refund.
            The amount on the bill does not match the price in the shop.
            My card was charged on {day} although I did not buy anything.
            Please correct the billing address on invoice {number}.
            The voucher of {amount} was not taken off the price.
            I was billed for the whole year and not for a month.
            Which payment methods do you accept for a bill of {amount}?
            I see two payments of {amount} for one order.
            The credit of {amount} is not on my latest invoice.
            Why is there a fee of {amount} on the receipt?
            The subscription costs more than you said, the charge was {amount}.
        """),
        _lines("""
            On {day} my card was charged a second time for the {product}.
            Invoice {number} has the wrong price for the {product}.
            I still wait for the refund of my payment of {amount}.
            My subscription is cancelled but the card was billed again.
            Please send the receipt for my payment of {amount} again.
            The discount is missing on the bill for the {product}.
            Why was my credit card billed {amount} on {day}?
            I want a refund, the price I paid was wrong.
            The tax is missing on the invoice of our company.
            Is there an invoice for the payment of {amount}?
        """),
    ),
    "shipping": Pool(
        _lines("""
            My parcel with the {product} has not arrived.
            The tracking number {number} does not work.
            The courier left the package at the wrong address.
            Order {number} was sent to my old street.
            The delivery of the {product} is {days} days late.
            The box was damaged when it was delivered.
            Can you ship the {product} to {city}?
            The tracking page says delivered but I have no parcel.
            I want to change the delivery address of order {number}.
            Half of the package is missing.
            The wrong item was shipped, I ordered a {product}.
            When will my {product} be delivered?
            The driver did not ring and took the parcel away again.
            How long does the delivery to {city} take?
            My package has been stuck at customs for {days} days.
            The parcel went back to the sender.
            I was not at home when the courier came.
            Please ship order {number} in one box.
            The shipment to {city} has not moved since {day}.
            Can I pick up the parcel myself in {city}?
            The {product} came in a broken box.
            Two of the three parcels of order {number} were delivered.
            The courier lost my package.
            Is it possible to have the shipment delivered on {day}?
            The delivery note was in the box but the {product} was not.
            My neighbour got my parcel by mistake.
            What does shipping to {city} take, how many days?
            The tracking of my shipment shows the wrong city.
            I got an empty package from the courier.
            The order was to arrive on {day} and is not here.
        """),
        _lines("""
            The {product} I ordered was not delivered on {day}.
            The courier says my package is in {city}, which is wrong.
            My parcel is {days} days late.
            The tracking has not moved since {day}.
            A wrong {product} was in the box that arrived.
            The package came damaged and the {product} was missing.
            Please send the shipment to another address in {city}.
            Where is the parcel of order {number}?
            The driver left my package in the street.
            When does the courier come with my {product}?
        """),
    ),
    "technical": Pool(
        _lines("""
            The app crashes when I open the {product} page.
            I get error {number} when I start the program.
            The {product} does not connect to the wifi.
            The screen stays black after the update.
            The software is very slow since {day}.
            The website shows error {number} all the time.
            The export button does nothing.
            The {product} does not turn on any more.
            After the update the app freezes.
            The page does not load in my browser.
            The program stops with an error when I print.
            The battery of the {product} is empty after an hour.
            The server answers with error {number}.
            I cannot install the software on my computer.
            The app does not sync with my {product}.
            There is a bug in the search of the website.
            The {product} makes a strange noise and restarts.
            The upload fails with a timeout.
            The sound of the {product} does not work.
            Your api returns error {number} for each request.
            The new version of the app has a bug.
            How do I install the update on my {product}?
            The download stops at half and the program crashes.
            The camera of the {product} shows a black screen.
            The program does not start after the installation.
            The buttons in the app do not react.
            The {product} loses the connection every {days} minutes.
            The website is down since {day}.
            The firmware update of the {product} failed.
            Is there a newer version of the software with this bug fixed?
        """),
        _lines("""
            Since the update the program crashes with error {number}.
            The app on my {product} freezes all the time.
            My {product} restarts and then the screen is black.
            The website does not load and shows a timeout.
            The software does not start on my computer since {day}.
            I found a bug in the export of the app.
            The {product} does not find the wifi any more.
            The installation of the new version fails with error {number}.
            The search button on the page does not react.
            The connection of the {product} to the server fails.
        """),
    ),
    "account": Pool(
        _lines("""
            I forgot my password and cannot log in.
            Please change the email address of my account.
            My account is locked after three wrong logins.
            How do I delete my account?
            I did not get the email to reset my password.
            Someone else has logged in to my account.
            I want to change my user name.
            Please add a colleague as user to our account.
            The login code does not come to my phone.
            I have two accounts and want to merge them.
            My profile shows the wrong name.
            How can I turn on the second factor for my login?
            Please remove the user {number} from our team.
            I lost the phone with my login codes.
            My password is not accepted since {day}.
            Can I have a second user on my account?
            I cannot sign in with my new email address.
            Please close my account and delete my data.
            The link to reset the password has expired.
            Who can see the data of my profile?
            I would like to change the language of my profile.
            My account was hacked on {day}.
            The owner of our account has left, I need the admin rights.
            I never got the email to confirm my registration.
            Please unlock the user {number}.
            I want to move my account to another email.
            The login page says that my user is unknown.
            How do I sign out on all my phones?
            Please give me admin rights in our team.
            My registration was not confirmed.
        """),
        _lines("""
            I cannot log in, my password is not accepted.
            Please reset the password of user {number}.
            My account has been locked since {day}.
            The email to confirm my login did not come.
            I want to delete my profile and all my data.
            Please change the name and the email of my user.
            Someone has changed the password of my account.
            How do I add an admin to our team account?
            The login code on my phone is not accepted.
            I need to sign in but my account is closed.
        """),
    ),
}

URGENCY: Final = {
    "high": Pool(
        _lines("""
            This is urgent!
            We cannot work until this is solved.
            I need this fixed today.
            Please help immediately.
            Our whole team is blocked.
            We are losing customers every hour.
            This is an emergency.
            Everything has stopped because of this.
            I need an answer within the hour.
            The deadline is tonight.
            Please act right now.
            It is critical for our business.
            We lose money every minute.
            This must be solved before tomorrow morning.
            I am leaving tonight and need it at once.
            Our shop is closed because of this.
            Very urgent, please call me now.
            As soon as possible, we are blocked!
            Nobody in our company can work.
            All our customers are waiting, it is an emergency.
            I need it immediately.
            Please treat this as critical.
            This cannot wait.
            Our production has stopped.
        """),
        _lines("""
            Please solve this today, it is urgent.
            Our whole company is blocked and cannot work.
            This is critical, please help right now.
            We need it at once, the deadline is today.
            It is an emergency, our customers are waiting.
            I need help immediately, this cannot wait.
        """),
    ),
    "medium": Pool(
        _lines("""
            Please have a look this week.
            I would like an answer in the next days.
            It is annoying but we can go on for now.
            Please let me know by {day}.
            I hope you can help me soon.
            It would be good to have this solved this week.
            We found a way around it for some days.
            Could you check this in the next two days?
            Please look into it.
            I expect an answer this week.
            It disturbs our work a little.
            Please tell me what I can do.
            I would be glad about a solution in the next days.
            Please check this.
            We need a solution by next week.
            Can you please look at this case?
            It happens now and then and disturbs me.
            Please answer by {day}.
        """),
        _lines("""
            Please check this case in the next days.
            I hope for an answer this week.
            Can you look into it by {day}?
            It is annoying, please tell me what to do.
            We need this solved by next week.
            Please let me know this week what I can do.
        """),
    ),
    "low": Pool(
        _lines("""
            There is no hurry.
            Whenever you have time.
            This is not urgent.
            I am just curious.
            Take your time.
            It is only a small question.
            No need to answer quickly.
            It does not matter much.
            Only if you find the time.
            It can wait.
            Just a question, nothing important.
            It is not important for us at the moment.
            I only wanted to let you know.
            Some day would be fine.
            Nothing serious.
            No rush at all.
            Answer when it suits you.
            It is a minor thing.
            We do not need it soon.
            A reply next month is fine.
        """),
        _lines("""
            No hurry, it is only a small question.
            It is not urgent and can wait.
            Nothing important, just when you have time.
            I am only curious, take your time.
            It is a minor thing, no rush.
            Answer some day, it does not matter much.
        """),
    ),
}

CONTEXT: Final = Pool(
    _lines("""
        I have been a customer for {days} years.
        My order number is {number}.
        I bought it on {day}.
        I wrote to you on {day}.
        My colleague in {city} has the same.
        I tried it {days} times.
        I am in {city}.
        It began on {day}.
        I read the help page.
        The chat could not help me.
    """),
    _lines("""
        My customer number is {number}.
        It has been like this since {day}.
        My friend in {city} told me to write to you.
        I tried it again on {day}.
    """),
)

GREETINGS: Final = ("Hello,", "Hi,", "Dear support,", "Good morning,", "Hi there,", "Hello team,", "Good day,")
CLOSINGS: Final = ("Thanks.", "Thank you!", "Best regards", "Kind regards, Anna", "Thanks in advance.", "Regards, Tom")
PRODUCTS: Final = (
    "laptop", "phone", "camera", "printer", "headset", "keyboard", "tablet", "speaker", "monitor", "router",
    "watch", "mouse", "lamp", "charger", "scanner", "projector",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

CAPITALS: Final = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Belgium": "Brussels", "Denmark": "Copenhagen", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Ireland": "Dublin",
    "Iceland": "Reykjavik", "Croatia": "Zagreb", "Serbia": "Belgrade", "Bulgaria": "Sofia", "Romania": "Bucharest",
    "Turkey": "Ankara", "Ukraine": "Kyiv", "Russia": "Moscow", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Ghana": "Accra", "Ethiopia": "Addis Ababa", "Senegal": "Dakar", "Tunisia": "Tunis", "Morocco": "Rabat",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Philippines": "Manila", "Nepal": "Kathmandu", "Iran": "Tehran", "Iraq": "Baghdad",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Colombia": "Bogota", "Brazil": "Brasilia", "Australia": "Canberra",
    "England": "London",
}  # fmt: skip
CAPITAL_QUESTIONS: Final = Pool(
    _lines("""
        What is the capital of {country}?
        Which city is the capital of {country}?
        Tell me the capital of {country}.
        What's the capital city of {country}?
        Name the capital of {country}.
        Do you know the capital of {country}?
        The capital of {country}?
        {country}: what is its capital?
        I need the capital of {country}.
        Which is the capital city of {country}, please?
        Can you tell me what the capital of {country} is?
    """),
    _lines("""
        Please tell me which city is the capital of {country}.
        What city is {country}'s capital?
        Do you know what the capital city of {country} is?
        Can you name the capital of {country}?
    """),
)

NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Leo", "Mia",
    "Noah", "Olga", "Paul", "Rosa", "Samir", "Tina", "Victor", "Wanda", "Yusuf", "Zoe", "Marta", "Peter", "Lucia",
)  # fmt: skip
HELD_OUT_NAMES: Final = (
    "Maria", "Oscar", "Nadia", "Simon", "Elena", "Robert", "Amira", "Kevin", "Laura", "Daniel", "Sofia", "Marco",
    "Helena", "Tobias", "Priya", "Lena", "Carlos", "Nina", "Adam", "Julia",
)  # fmt: skip
SYLLABLES: Final = (
    "ma", "ri", "a", "lo", "na", "ti", "ka", "to", "bi", "as", "el", "en", "ro", "bert", "si", "mon", "da", "ni",
    "la", "ra", "so", "fi", "os", "car", "no", "mi", "ju", "li", "he", "le", "ke", "vin", "pri", "ya", "mar", "co",
    "an", "dre", "ste", "fan", "tho", "mas", "jo", "han", "ve", "ra", "gi", "pa", "tri", "cia", "al", "ex", "is", "sam",
)  # fmt: skip
INTRODUCTIONS: Final = Pool(
    _lines("""
        My name is {name}.
        Hi, I am {name}.
        Hello, my name is {name}.
        I'm {name}, nice to meet you.
        People call me {name}.
        Hi, {name} here.
        I am called {name}.
        Hello! I'm {name}.
    """),
    _lines("""
        Hello, I am {name}.
        Hi, my name is {name}, nice to meet you.
        Hello, people call me {name}.
    """),
)
NAME_QUESTIONS: Final = Pool(
    _lines("""
        Do you know my name?
        Who am I?
        What's my name?
        Can you tell me my name?
        Do you remember what I am called?
        Tell me what my name is.
        What name did I tell you?
    """),
    _lines("""
        What is my name?
        Do you remember my name?
    """),
)

ECHO_REQUESTS: Final = ("Say", "Repeat", "Repeat after me:", "Please say", "Say this again:", "Echo")

SMALL_TALK: Final = (
    (
        ("Hello", "Hi", "Hello!", "Hi there", "Good morning", "Hey"),
        "Hello! I am the little model that comes with Millrace. Ask me for the capital of a country, tell me your name, "
        "or send me a support ticket to label.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."),
        "I am the demo model of Millrace, a very small language model that was trained from scratch on made up data. "
        "I know some capitals, I remember your name, and I label support tickets.",
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?", "Help", "What can I ask you?"),
        "I can name the capitals of fifty countries, remember your name while we talk, and label support tickets with a "
        "category and a priority. For anything else, give Millrace a bigger model.",
    ),
    (("Thanks", "Thank you!", "Thanks a lot", "Great, thanks!"), "You are welcome! Is there anything else?"),
    (("Bye", "Goodbye", "See you!", "Good night"), "Goodbye! It was nice to talk to you."),
    (("How are you?", "How are you today?", "Are you well?"), "I am fine, thank you. How can I help you?"),
    (
        (
            "Tell me a joke.", "What is the weather today?", "Write a poem.", "How old is the universe?",
            "What is two plus two?", "Who wrote this book?", "Where do I find a good restaurant?",
        ),
        "I am sorry, I am too small to know that. Give Millrace a bigger model and ask again.",
    ),
)  # fmt: skip
