"""What `import stanza_sim as ss` offers: thin functions over the rooms below. Its names are imported when first used."""
