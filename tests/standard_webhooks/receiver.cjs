// A receiver by the official JavaScript library: receiver.cjs SECRETS LEDGER
//
// As receiver.py. Lines NAME=whpk_… of SECRETS are Ed25519 public keys, which the library does not know yet: `v1a` is
// verified by Node's own crypto, as the scheme says.
const { createServer } = require("node:http");
const { createPublicKey, verify } = require("node:crypto");
const { appendFileSync, readFileSync } = require("node:fs");
const { Webhook } = require("standardwebhooks");

const [secrets, ledger] = process.argv.slice(2);

function verifies(secret, body, headers) {
    try {
        new Webhook(secret).verify(body, headers);
        return true;
    } catch {
        return false;
    }
}

function verifiesAsymmetric(key, body, headers) {
    const x = Buffer.from(key.slice("whpk_".length), "base64").toString("base64url");
    const publicKey = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    const content = Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
    const signatures = headers["webhook-signature"].split(" ").filter((one) => one.startsWith("v1a,"));
    return signatures.some((one) => verify(null, content, publicKey, Buffer.from(one.slice(4), "base64")));
}

const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
        const body = Buffer.concat(chunks).toString();
        const lines = readFileSync(secrets, "utf8").split("\n").filter((line) => line.includes("=wh"));
        const known = lines.map((line) => line.match(/^([^=]*)=(.*)$/).slice(1));
        const check = ([, key], text) =>
            key.startsWith("whpk_") ? verifiesAsymmetric(key, text, request.headers) : verifies(key, text, request.headers);
        const by = known.filter((one) => check(one, body)).map(([name]) => name);
        const changed = known.filter((one) => check(one, body + " ")).map(([name]) => name);
        const entry = { id: request.headers["webhook-id"], type: JSON.parse(body).type, by, changed };
        entry.signatures = request.headers["webhook-signature"];
        appendFileSync(ledger, JSON.stringify(entry) + "\n");
        response.writeHead(by.length ? 204 : 401).end();
    });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
