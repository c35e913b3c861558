// Where the gateway is; tests/conformance/test_javascript.py says so.
export const baseURL = process.env.STRATA_BASE_URL;
export const apiKey = process.env.STRATA_KEY;
export const model = process.env.STRATA_MODEL;
export const headers = { 'x-strata-sim': 'speed=0' };
