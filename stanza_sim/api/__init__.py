"""What `import stanza_sim as ss` offers: thin functions over the rooms below, imported when they are first used."""
