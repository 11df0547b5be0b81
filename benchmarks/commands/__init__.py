"""What commands cost on fixed instances: this checkout against an earlier commit, in one run on one machine."""
