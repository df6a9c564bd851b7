"""What training changes in the model, the plug-ins and the data module: how it is captured, and how it is restored."""
