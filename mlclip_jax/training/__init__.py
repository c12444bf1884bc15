"""How a method is trained: one step, the loop around it, and what is saved, logged and resumed."""
