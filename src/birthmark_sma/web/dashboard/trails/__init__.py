"""The pages that list what happened: validations (the audit log) and administrative acts."""
