"""Workers in processes of their own, and the messages between them and the front end."""
