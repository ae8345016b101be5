// Saves what Python puts into the value, {name, type, data: base64, turn}, as a file of the browser's.
watch("value", () => {
  const { name, type, data } = props.value || {};
  if (!data) return;
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
