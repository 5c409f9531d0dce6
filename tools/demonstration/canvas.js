// A square to draw in with the mouse, a pen or a finger: white on black, as the digits that were trained on.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const side = canvas.width;
context.lineWidth = 0.08 * side;
context.lineCap = context.lineJoin = "round";
context.strokeStyle = "white";

let holdsExample = false; // drawing begins anew over one

function clear() {
    holdsExample = false;
    context.fillStyle = "black";
    context.fillRect(0, 0, side, side);
}

function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
}

canvas.addEventListener("pointerdown", (event) => {
    if (holdsExample) clear();
    canvas.setPointerCapture(event.pointerId);
    context.beginPath();
    context.moveTo(...place(event));
    context.lineTo(...place(event)); // a click is a dot
    context.stroke();
});
canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    context.lineTo(...place(event));
    context.stroke();
});
canvas.addEventListener("pointerup", () => {
    props.value = canvas.toDataURL("image/png");
    trigger("input");
});
element.querySelector("button").addEventListener("click", () => {
    clear();
    props.value = null;
    trigger("clear");
});
// What the page put here: an example.
function show() {
    if (!props.value) return;
    const picture = new Image();
    picture.onload = () => {
        context.imageSmoothingEnabled = false;
        context.drawImage(picture, 0, 0, side, side);
        holdsExample = true;
    };
    picture.src = props.value;
}

clear();
show();
watch("value", show);
