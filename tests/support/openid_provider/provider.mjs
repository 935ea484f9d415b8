// A certified OpenID Provider (npm oidc-provider) for the tests: in memory, on loopback, with keys that turn on request.
//
// Environment: PORT, MODULES (the folder that holds node_modules), TOKEN_SECONDS (life of access tokens),
// GENERATION (from which the ids of keys are counted);
// of the clients `browser` and `public`, commas between several: REDIRECT_URIS, POST_LOGOUT_REDIRECT_URIS, and
// BACKCHANNEL_LOGOUT_URI (one); CLIENTS, a JSON list of more clients like those two.
// Prints one line, "listening <issuer>", when it serves.
//
// An access token is a JWT (typ at+jwt) signed with the algorithm that ends the resource asked for:
//   resource=https://prefect.test/ES256   → ES256, audience https://prefect.test
//   resource=https://prefect.test/opaque  → no JWT: only /token/introspection knows whose it is
// POST /test/rotate     new keys sign, those before stay published
// POST /test/drop-old   only the keys that sign stay published
// POST /test/groups?user=alice&groups=a,b   from now on
// POST /test/deny?user=alice                nobody of that name is known any more
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const port = Number(process.env.PORT);
const issuer = `http://127.0.0.1:${port}`;
const lifetime = Number(process.env.TOKEN_SECONDS ?? 600);
const requireFrom = createRequire(pathToFileURL(`${process.env.MODULES}/`));
const library = pathToFileURL(requireFrom.resolve('oidc-provider'));
const { default: Provider } = await import(library);
const { createMemoryAdapter } = await import(new URL('adapters/memory_adapter.js', library));

const AUDIENCE = 'https://prefect.test';
const groups = { alice: ['data-engineers', 'prefect-admins'], bob: ['analysts'] };
const KEY_KINDS = {
  RS256: ['rsa', { modulusLength: 2048 }],
  PS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }],
  ES384: ['ec', { namedCurve: 'P-384' }],
  EdDSA: ['ed25519', {}],
};
const denied = new Set();
const adapter = createMemoryAdapter(); // what was issued outlives the keys

let generation = Number(process.env.GENERATION ?? 0); // a key id names one key, also after a restart

function newKeys() {
  generation += 1;
  return Object.entries(KEY_KINDS).map(([alg, [kind, options]]) => ({
    ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
    kid: `${alg.toLowerCase()}-${generation}`,
    use: 'sig',
    alg,
  }));
}

function codeClient(id, extra) {
  const backchannel = process.env.BACKCHANNEL_LOGOUT_URI;
  return {
    client_id: id,
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: (process.env.REDIRECT_URIS ?? 'http://127.0.0.1:8000/_auth/callback').split(','),
    post_logout_redirect_uris: (process.env.POST_LOGOUT_REDIRECT_URIS ?? '').split(',').filter(Boolean),
    ...(backchannel && { backchannel_logout_uri: backchannel, backchannel_logout_session_required: true }),
    ...extra,
  };
}

function configuration(keys) {
  return {
    adapter,
    jwks: { keys },
    clients: [
      {
        client_id: 'worker',
        client_secret: 'worker-secret',
        grant_types: ['client_credentials'],
        response_types: [],
        redirect_uris: [],
      },
      codeClient('browser', { client_secret: 'browser-secret' }),
      codeClient('public', { token_endpoint_auth_method: 'none' }),
      ...JSON.parse(process.env.CLIENTS ?? '[]').map(({ client_id: id, ...extra }) => codeClient(id, extra)),
    ],
    scopes: ['openid', 'offline_access', 'profile', 'email', 'groups', 'prefect:read', 'prefect:write'],
    claims: {
      openid: ['sub'],
      profile: ['name', 'preferred_username'],
      email: ['email', 'email_verified'],
      groups: ['groups'],
    },
    enabledJWA: { idTokenSigningAlgValues: Object.keys(KEY_KINDS) },
    pkce: { required: () => true },
    cookies: { keys: ['only-for-tests'] },
    ttl: { AccessToken: lifetime, ClientCredentials: lifetime, IdToken: 300, Session: 3600, Grant: 3600, Interaction: 600, RefreshToken: 3600 },
    issueRefreshToken: (_context, client) => client.grantTypeAllowed('refresh_token'), // as most providers: no consent page
    rotateRefreshToken: true,
    fetch: (url, { dispatcher: _public, ...options }) => fetch(url, options), // of its own it calls no loopback address
    findAccount: (_context, subject) => (denied.has(subject) ? undefined : {
      accountId: subject,
      claims: () => ({
        sub: subject,
        name: subject,
        preferred_username: subject,
        email: `${subject}@example.test`,
        email_verified: true,
        groups: groups[subject] ?? [],
      }),
    }),
    extraTokenClaims: (_context, token) => ({ groups: groups[token.accountId] ?? ['machines'] }),
    features: {
      devInteractions: { enabled: true }, // a sign-in form that takes any password
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      backchannelLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        // people's access tokens are for the userinfo endpoint
        defaultResource: (_context, client) => (client.clientId === 'worker' ? `${AUDIENCE}/RS256` : undefined),
        useGrantedResource: () => true,
        getResourceServerInfo: (_context, resource) => ({
          scope: 'prefect:read prefect:write',
          audience: AUDIENCE,
          accessTokenTTL: lifetime,
          ...(resource.endsWith('/opaque')
            ? { accessTokenFormat: 'opaque' }
            : { accessTokenFormat: 'jwt', jwt: { sign: { alg: resource.split('/').pop() } } }),
        }),
      },
    },
  };
}

let keys = newKeys();
let answer;

function serve() {
  answer = new Provider(issuer, configuration(keys)).callback();
}

const commands = {
  '/test/rotate': () => { keys = [...newKeys(), ...keys]; },
  '/test/drop-old': () => { keys = keys.slice(0, Object.keys(KEY_KINDS).length); },
  '/test/groups': (query) => { groups[query.get('user')] = query.get('groups').split(',').filter(Boolean); },
  '/test/deny': (query) => { denied.add(query.get('user')); },
};

serve();
createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, issuer);
  const command = request.method === 'POST' && commands[pathname];
  if (!command) return answer(request, response);
  command(searchParams);
  serve();
  return response.end(JSON.stringify(keys.map(({ kid }) => kid)));
}).listen(port, '127.0.0.1', () => console.log(`listening ${issuer}`));
