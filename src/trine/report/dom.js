"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

function add(parent, tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

