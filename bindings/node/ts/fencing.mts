// The same for `import`.

export { REDIS_CLAIM, checkRefusesZombies } from './fencing.js'
