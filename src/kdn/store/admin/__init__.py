"""What operators do to a store: manage, bundle, and describe blocks.

Commands and HTTP routes import it; start reading at `manage.py`.
"""
