// Runs the official TypeScript worker until it is killed.
//
// Reads ANTHROPIC_BASE_URL, ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY; the working
// directory is the first argument, the directory with `node_modules` the second.

import { createRequire } from "node:module";
import { join } from "node:path";

const [workdir, packages] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const { Anthropic } = require("@anthropic-ai/sdk");

const client = new Anthropic({ apiKey: null, authToken: process.env.ANTHROPIC_ENVIRONMENT_KEY });
const worker = client.beta.environments.work.worker({
  environmentId: process.env.ANTHROPIC_ENVIRONMENT_ID,
  environmentKey: process.env.ANTHROPIC_ENVIRONMENT_KEY,
  workdir,
  workerId: "official-typescript",
  maxIdleMs: 2000,
});
await worker.run();
