"use strict";
// Shows the OpenAPI document beside this page. Calls go to where the page itself is, under whatever prefix of a proxy.

// Swagger UI takes NDJSON for JSON, and puts the lines of its example into one quoted string.
function lines({ fn }) {
  const sample = fn.getSampleSchema;
  const plain = (schema, media, options, example) =>
    media === "application/x-ndjson" ? (example ?? "") : sample(schema, media, options, example);
  return { fn: { getSampleSchema: plain } };
}

async function show() {
  const place = document.getElementById("docs");
  try {
    const answer = await fetch("openapi.json");
    if (!answer.ok) throw new Error(`openapi.json was answered with ${answer.status}`);
    const spec = await answer.json();
    spec.servers = [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
    // An optional parameter is sent only by whoever has typed it: some may not be sent without others.
    for (const operation of Object.values(spec.paths).flatMap(Object.values)) {
      for (const parameter of operation.parameters) {
        if (parameter.required || parameter.schema.default === undefined) continue;
        const shown = JSON.stringify(parameter.schema.default);
        if (shown !== "[]") parameter.description += ` Default: \`${shown}\`.`;
        delete parameter.schema.default;
      }
    }
    // The document has no schemas here for the sake of generators; without one, Swagger UI shows no example.
    const bodies = spec.paths["/v1/events"].post.requestBody.content;
    const event = { $ref: "#/components/schemas/CloudEvent" };
    bodies["application/cloudevents+json"].schema = event;
    bodies["application/cloudevents-batch+json"].schema = { type: "array", items: event };
    // After a change of the form, Swagger UI looks for the example under the name that the other form has for its own.
    for (const [media, body] of Object.entries(bodies)) {
      if (media === "application/json") continue;
      body.example = Object.values(body.examples)[0].value;
      delete body.examples;
    }
    SwaggerUIBundle({ domNode: place, spec, deepLinking: true, validatorUrl: null, plugins: [lines] });
  } catch (error) {
    place.textContent = `The document cannot be shown: ${error.message}`;
  }
}

show();
