"""OpenAI's shapes on the wire: what comes in is checked once here; what goes out is built here.

Source: OpenAI's API description and the SDK's types (see CHANGELOG for the date they were read).
"""
